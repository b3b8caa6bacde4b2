"""Tokens chosen on the device are those that pixedge.sampling chooses with the same number."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixedge.sampling import Sampler, SamplingParams

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import sampling, tuning

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda:0")


def random_logits(rows: int, vocab: int, seed: int, spread: float = 3.0) -> Tensor:
    return (spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))).to(DEVICE)


def draw(logits: Tensor, draws: sampling.Draws, *, ordered: bool) -> list[int]:
    rows, vocab = logits.shape
    likely, out = (torch.full((rows,), -7, dtype=torch.int32, device=DEVICE) for _ in range(2))
    sampling.greedy(logits, sampling.Room.allocate(rows, vocab, DEVICE), likely)
    room = sampling.Sorted.allocate(rows, vocab, DEVICE) if ordered else None
    if room is not None:
        room.sort(logits, range(rows))
    return sampling.draw(logits, draws, likely, out, room).tolist()


def choose_greedily(logits: Tensor) -> list[int]:
    out = torch.full((len(logits),), -7, dtype=torch.int32, device=DEVICE)
    return sampling.greedy(logits, sampling.Room.allocate(*logits.shape, DEVICE), out).tolist()


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 9000), st.integers(0, 99))
@example(2, 4096, 0)
@example(1, 4097, 0)
def test_greedy(rows: int, vocab: int, seed: int) -> None:
    logits = random_logits(rows, vocab, seed).round()  # many are equal: the lowest id wins
    assert choose_greedily(logits) == sampling.greedy_reference(logits).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 4095, 4999])
def test_a_row_that_is_not_finite_is_told(bad: float, at: int) -> None:
    logits = random_logits(3, 5000, 1)
    logits[1, at] = bad
    found = choose_greedily(logits)
    assert found == sampling.greedy_reference(logits).tolist()
    assert found[1] == sampling.NOT_FINITE and found[0] >= 0 and found[2] >= 0


def make_draws(params: list[SamplingParams], uniforms: list[float]) -> sampling.Draws:
    def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([getattr(each, name) for each in params], dtype=dtype, device=DEVICE)

    numbers = torch.tensor(uniforms, dtype=torch.float32, device=DEVICE)
    return sampling.Draws(
        column("temperature"), column("top_k", torch.int32), column("top_p"), column("min_p"), numbers
    )


def around(logits: Tensor, draws: sampling.Draws) -> set[int]:
    """Give what the reference says for this number and its neighbours: where float32 may fall either way."""
    found = set()
    for shift_u in (0.0, -1e-5, 1e-5):
        for shift_p in (0.0, -1e-5, 1e-5):
            top_p = torch.where(draws.top_p < 1, draws.top_p + shift_p, draws.top_p)
            uniforms = (draws.uniforms + shift_u).clamp(0, 1 - 2**-24)
            near = sampling.Draws(draws.temperatures, draws.top_k, top_p, draws.min_p, uniforms)
            found |= set(sampling.draw_reference(logits, near).tolist())
    return found


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.3, 0.7, 1.0, 2.0)),
    top_k=st.sampled_from((0, 1, 5, 300)),
    top_p=st.sampled_from((1.0, 0.9, 0.5, 0.01)),
    min_p=st.sampled_from((0.0, 0.05, 1.0)),
    seed=st.integers(0, 10**6),
)


@settings(max_examples=15)
@given(PARAMS, st.sampled_from((1, 7, 100, 4097, 6000)), st.integers(0, 99))
@example(SamplingParams(temperature=1.0, seed=1), 6000, 0)
@example(SamplingParams(temperature=2.0, top_p=0.9, seed=1), 6000, 0)
def test_one_number_gives_the_samplers_token(params: SamplingParams, vocab: int, seed: int) -> None:
    logits = random_logits(1, vocab, seed)
    assert params.seed is not None
    uniform = float(torch.rand((), generator=torch.Generator().manual_seed(params.seed), dtype=torch.float64))
    draws = make_draws([params], [uniform])
    expected = Sampler(params).sample(logits[0]).id
    assert expected in around(logits, draws)
    (found,) = draw(logits, draws, ordered=params.top_k > 0 or params.top_p < 1.0)
    near = around(logits, draws)
    assert found in near
    assert found == expected or len(near) > 1


def test_rows_are_drawn_each_by_its_own_rules() -> None:
    """A batch with and without top-k and top-p; a broken row does not disturb its neighbours."""
    params = [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=3),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.0),
        SamplingParams(),
    ]
    logits = random_logits(5, 500, 4)
    logits[3, 17] = torch.nan
    draws = make_draws(params, [0.999, 0.4, 0.1, 0.5, 0.999])
    found = draw(logits, draws, ordered=True)
    assert found == sampling.draw_reference(logits, draws).tolist()
    assert found[3] == sampling.NOT_FINITE and found[4] == int(logits[4].argmax())


def test_draws_follow_the_distribution() -> None:
    """Evenly spaced numbers hit each token as often as its probability says."""
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]], device=DEVICE)).repeat(40, 1)
    uniforms = [(index + 0.5) / 40 for index in range(40)]
    draws = make_draws([SamplingParams(temperature=1.0)] * 40, uniforms)
    found = torch.tensor(draw(logits, draws, ordered=False))
    assert torch.bincount(found).tolist() == [4, 8, 12, 16]


@pytest.mark.parametrize("vocab", [1, 90, 4096, 9000])
def test_an_id_is_told_with_its_log_probability(vocab: int) -> None:
    logits = random_logits(3, vocab, 8, spread=20.0)
    room, ids = sampling.Room.allocate(3, vocab, DEVICE), torch.zeros(3, dtype=torch.int32, device=DEVICE)
    sampling.greedy(logits, room, ids)
    told = torch.zeros(3, 2, dtype=torch.int32, device=DEVICE)
    for chosen in (ids, torch.tensor([0, vocab - 1, vocab // 2], dtype=torch.int32, device=DEVICE)):
        sampling.tell(logits, chosen, room.totals, told)
        assert torch.equal(told[:, 0], chosen)
        expected = torch.log_softmax(logits, -1).gather(1, chosen[:, None].long())[:, 0]
        found = told[:, 1].contiguous().view(torch.float32)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-5)
