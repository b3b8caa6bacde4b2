"""How far a quantised model's predictions are from the 16-bit ones: KL divergence and top-1 agreement.

Positions are counted in two kinds, because 4 bits cost more where pictures are involved: "text" has no
picture before it, "image" follows at least one. Positions that predict an image token are left out; the
model never has to.

The vocabulary is gone through a part at a time. With p = softmax(z), q = softmax(y), and lse the logarithm of
a sum of exponentials,

    KL(p || q) = sum_w p[w] (z[w] - y[w]) - lse(z) + lse(y)

and all three sums can be kept up as parts arrive, scaled by the largest logit so far. So logits of a whole
vocabulary never exist, and a head that must be widened is widened once for thousands of positions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixedge.config import VisionConfig

Head = Callable[[Tensor], Iterable[Tensor]]
"""Maps hidden states [tokens, dim] to the parts of their logits, [tokens, words] each, in order of words."""

KINDS = ("text", "image")
_CHUNK = 2048
"""Positions at a time."""


@dataclass(frozen=True)
class Divergence:
    """Means over positions: KL(16-bit || quantised) in nats, and the share whose likeliest token agrees."""

    tokens: int
    kl: float
    top1: float


def are_of_pictures(ids: Sequence[int], vision: VisionConfig) -> Tensor:
    """Tell which tokens stand for a picture's patches or end its rows; bool [tokens]."""
    image_ids = torch.tensor([vision.image_token_id, vision.image_break_token_id, vision.image_end_token_id])
    return torch.isin(torch.tensor(ids), image_ids)


def kinds_of(ids: tuple[int, ...], vision: VisionConfig) -> Tensor:
    """Return the kind of each position: 0 text, 1 after a picture, -1 not counted; int64 [tokens].

    Not counted are positions that an image token follows, and the last, which nothing follows.
    """
    is_image = are_of_pictures(ids, vision)
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
    them. Return each model's divergence by kind; a kind without positions is left out. progress gets the
    positions done and in all.
    """
    total = sum(int((sample >= 0).sum()) for sample in kinds)
    done = 0
    found: dict[str, dict[str, Divergence]] = {model: {} for model in others}
    for number, kind in enumerate(KINDS):
        places = [
            (sample, int(place))
            for sample, of_sample in enumerate(kinds)
            for place in torch.nonzero(of_sample == number)[:, 0]
        ]
        sums = {model: [0.0, 0.0] for model in others}
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            rows = {model: _rows(hidden, chunk) for model, hidden in others.items()}
            for model, (kl, agreed) in _compare(_rows(dense, chunk), rows, dense_head, head).items():
                sums[model][0] += kl
                sums[model][1] += agreed
            done += len(chunk)
            if progress:
                progress(done, total)
        for model, (kl_sum, agreed_sum) in sums.items():
            if places:
                found[model][kind] = Divergence(len(places), kl_sum / len(places), agreed_sum / len(places))
    return found


def _rows(hidden: Sequence[Tensor], places: Sequence[tuple[int, int]]) -> Tensor:
    """Take positions, each a sample and a place in it: [positions, dim]."""
    by_sample: dict[int, list[int]] = {}
    for sample, place in places:
        by_sample.setdefault(sample, []).append(place)
    return torch.cat([hidden[sample][chosen] for sample, chosen in by_sample.items()])


class _Distribution:
    """The softmax over logits of which parts arrive: their largest, where it is, and the sum behind it."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.largest = torch.full((tokens,), -torch.inf, device=device)
        self.likeliest = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.total = torch.zeros(tokens, dtype=torch.float64, device=device)
        """Of exp(logit - largest)."""
        self.words = 0

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next part; return its exp(logit - largest), and what older sums are to be scaled by."""
        highest, place = logits.max(-1)
        self.likeliest = torch.where(highest > self.largest, place + self.words, self.likeliest)
        largest = torch.maximum(self.largest, highest)
        scale = (self.largest - largest).exp().double()
        self.largest, self.words = largest, self.words + logits.shape[1]
        weights = (logits - largest[:, None]).exp()
        self.total = self.total * scale + weights.sum(-1, dtype=torch.float64)
        return weights, scale

    def log_total(self) -> Tensor:
        """Return the logarithm of the sum of exponentials."""
        return self.largest.double() + self.total.log()


def _compare(
    dense: Tensor, others: Mapping[str, Tensor], dense_head: Head, head: Head
) -> dict[str, tuple[float, int]]:
    """Return each model's summed divergence from the dense one, and at how many positions they agree."""
    parts = zip(dense_head(dense), *(head(rows) for rows in others.values()), strict=True)
    expected: _Distribution | None = None
    for z, *ys in parts:
        if expected is None:
            expected = _Distribution(len(z), z.device)
            found = [_Distribution(len(z), z.device) for _ in ys]
            apart = [torch.zeros(len(z), dtype=torch.float64, device=z.device) for _ in ys]
        weights, scale = expected.add(z)
        for at, y in enumerate(ys):
            found[at].add(y)
            apart[at] = apart[at] * scale + (weights * (z - y)).sum(-1, dtype=torch.float64)
    assert expected is not None, "a head gave no logits"
    return {
        model: (
            float((difference / expected.total - expected.log_total() + other.log_total()).sum()),
            int((expected.likeliest == other.likeliest).sum()),
        )
        for model, difference, other in zip(others, apart, found, strict=True)
    }
