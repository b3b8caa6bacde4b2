"""How far a quantised model's predictions are from the 16-bit ones: KL divergence and top-1 agreement.

Positions are counted in two kinds, because 4 bits cost more where pictures are involved: "text" has no
picture before it, "image" follows at least one. Positions that predict an image token are left out; the
model never has to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixedge.config import VisionConfig

Head = Callable[[Tensor], Tensor]

KINDS = ("text", "image")
_CHUNK = 256


@dataclass(frozen=True)
class Divergence:
    """Means over positions: KL(16-bit || quantised) in nats, and the share whose likeliest token agrees."""

    tokens: int
    kl: float
    top1: float


def kinds_of(ids: tuple[int, ...], vision: VisionConfig) -> Tensor:
    """Return the kind of each position: 0 text, 1 after a picture, -1 not counted; int64 [tokens].

    Not counted are positions that an image token follows, and the last, which nothing follows.
    """
    tensor = torch.tensor(ids)
    image_ids = torch.tensor([vision.image_token_id, vision.image_break_token_id, vision.image_end_token_id])
    is_image = torch.isin(tensor, image_ids)
    kinds = (is_image.cumsum(0) > 0).long()
    kinds[:-1][is_image[1:]] = -1
    kinds[-1] = -1
    return kinds


def divergence(
    dense: Sequence[Tensor],
    others: Mapping[str, Sequence[Tensor]],
    kinds: Sequence[Tensor],
    dense_head: Head,
    head: Head,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Divergence]]:
    """Compare models with a dense one by the hidden states [tokens, dim] of every sample before the head.

    others: the models' hidden states by model. kinds: of every sample's positions, as ``kinds_of`` gives
    them. The heads map hidden states to logits [tokens, vocab]. Return each model's divergence by kind; a
    kind without positions is left out. progress gets the positions done and in all.
    """
    total = sum(int((sample >= 0).sum()) for sample in kinds)
    done = 0
    found: dict[str, dict[str, Divergence]] = {model: {} for model in others}
    for number, kind in enumerate(KINDS):
        chosen = [torch.nonzero(sample == number)[:, 0] for sample in kinds]
        tokens = sum(map(len, chosen))
        if not tokens:
            continue
        rows = _rows(dense, chosen)
        sums = {model: [0.0, 0.0] for model in others}
        rows_of = {model: _rows(hidden, chosen) for model, hidden in others.items()}
        for start in range(0, tokens, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            expected = torch.log_softmax(dense_head(rows[chunk]).float(), -1)
            for model in others:
                logprobs = torch.log_softmax(head(rows_of[model][chunk]).float(), -1)
                kl = (expected.exp() * (expected - logprobs)).sum(-1)
                sums[model][0] += float(kl.sum(dtype=torch.float64))
                sums[model][1] += float((expected.argmax(-1) == logprobs.argmax(-1)).sum())
            done += len(expected)
            if progress:
                progress(done, total)
        for model, (kl_sum, agreed) in sums.items():
            found[model][kind] = Divergence(tokens, kl_sum / tokens, agreed / tokens)
    return found


def _rows(hidden: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Take some positions of every sample: [positions, dim]."""
    return torch.cat([x[chosen] for x, chosen in zip(hidden, places, strict=True)])
