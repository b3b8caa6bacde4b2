"""KL divergence and agreement against a direct computation, and which positions count as what."""

import math

import pytest
import torch
from torch import Tensor

from pixedge_export import divergence as module
from pixedge_export.divergence import Divergence, divergence, kinds_of
from tests.random_models import make_prompt, random_config, random_pixels

VISION = random_config(0).vision
IMG, BREAK, END = VISION.image_token_id, VISION.image_break_token_id, VISION.image_end_token_id


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((1, 20, 21), (0, 0, -1)),
        ((1,), (-1,)),
        # what predicts an image token is not counted: neither the text before a picture nor its inside
        ((1, 20, IMG, IMG, BREAK, IMG, IMG, END, 30, 31), (0, -1, -1, -1, -1, -1, -1, 1, 1, -1)),
        # between two pictures, and behind both
        ((1, IMG, END, 30, IMG, END, 31, 32), (-1, -1, 1, -1, -1, 1, 1, -1)),
        # a prompt that ends with a picture predicts nothing that is known
        ((1, 20, IMG, END), (0, -1, -1, -1)),
    ],
)
def test_kinds(ids: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert kinds_of(ids, VISION).tolist() == list(expected)


class Case:
    """Three samples of 5, 1 and 9 tokens with two other models, and two heads on 11 words."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = (5, 1, 9)
        self.dense = [torch.randn(n, 6, generator=generator) for n in lengths]
        self.others = {
            name: [x + noise * torch.randn(x.shape, generator=generator) for x in self.dense]
            for name, noise in (("near", 0.1), ("far", 1.0))
        }
        self.kinds = [torch.tensor(k) for k in ([0, 0, -1, 1, -1], [-1], [0, 1, 1, 1, 1, 1, 1, 1, -1])]
        self.weights = [torch.randn(11, 6, generator=generator) for _ in range(2)]

    def logits(self, which: int, x: Tensor) -> Tensor:
        return x @ self.weights[which].t()

    def measure(self, words: int = 4, **options: object) -> dict[str, dict[str, Divergence]]:
        heads = (lambda x: self.logits(0, x).split(words, -1), lambda x: self.logits(1, x).split(words, -1))
        return divergence(self.dense, self.others, self.kinds, *heads, **options)


def directly(case: Case, model: str, kind: int) -> tuple[int, float, float]:
    """Sum p log(p / q) word by word over single positions."""
    kls, agreed = [], []
    for dense, other, kinds in zip(case.dense, case.others[model], case.kinds, strict=True):
        for place in torch.nonzero(kinds == kind)[:, 0]:
            p = torch.softmax(case.logits(0, dense[place]).double(), 0)
            q = torch.softmax(case.logits(1, other[place]).double(), 0)
            kls.append(sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True)))
            agreed.append(int(p.argmax()) == int(q.argmax()))
    return len(kls), sum(kls) / len(kls), sum(agreed) / len(agreed)


@pytest.mark.parametrize("words", [1, 4, 11])
@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_equals_a_direct_computation(chunk: int, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    case = Case()
    found = case.measure(words)
    assert list(found) == ["near", "far"]
    for model, kinds in found.items():
        for number, kind in enumerate(("text", "image")):
            tokens, kl, top1 = directly(case, model, number)
            assert kinds[kind].tokens == tokens
            assert kinds[kind].kl == pytest.approx(kl, rel=1e-4)
            assert kinds[kind].top1 == top1
    assert (found["near"]["text"].tokens, found["near"]["image"].tokens) == (3, 8)


def test_equal_models_do_not_diverge() -> None:
    case = Case()
    case.others = {"same": case.dense, "far": case.others["far"]}
    case.weights[1] = case.weights[0]
    found = case.measure()
    for value in found["same"].values():
        assert value.kl == pytest.approx(0, abs=1e-6) and value.top1 == 1
    assert all(value.kl > 0.1 for value in found["far"].values())


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_large_logits_neither_overflow_nor_cost_precision(shift: float) -> None:
    """Their exponentials would be infinite in float32, or nothing; what is added to all changes nothing."""
    case = Case()
    expected = case.measure()
    real = case.logits
    case.logits = lambda which, x: real(which, x) + shift * (which + 1)
    found = case.measure()
    for model, kinds in expected.items():
        for kind, value in kinds.items():
            assert found[model][kind].kl == pytest.approx(value.kl, abs=2e-4)
            assert found[model][kind].top1 == value.top1


def test_a_kind_without_positions_is_left_out() -> None:
    case = Case()
    case.kinds = [torch.where(kinds == 0, -1, kinds) for kinds in case.kinds]
    assert [list(kinds) for kinds in case.measure().values()] == [["image"], ["image"]]
    case.kinds = [torch.full_like(kinds, -1) for kinds in case.kinds]
    assert case.measure() == {"near": {}, "far": {}}


def test_progress_ends_at_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 4)
    steps: list[tuple[int, int]] = []
    Case().measure(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 11), (7, 11), (11, 11)]


def test_kinds_of_a_prompt_with_a_picture() -> None:
    prompt = make_prompt(VISION, [1, 20], random_pixels(VISION, 2, 3), [30, 31, 32])
    # BOS, 2 rows of 3 patches and a break or end each, three words
    assert kinds_of(prompt.ids, VISION).tolist() == [0] + [-1] * 8 + [1, 1, 1, -1]
