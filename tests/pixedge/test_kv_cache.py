"""The paged cache against attention written out over the whole sequence, however its tokens arrive."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.decoder import WholeSequences
from pixedge.kernels.attention import PAGE, dequantize_rows, quantize_rows
from pixedge.kv_cache import PagedStep, PagePool

CPU = torch.device("cpu")


def config(n_heads: int = 6, n_kv_heads: int = 2, head_dim: int = 8, n_layers: int = 3) -> DecoderConfig:
    return DecoderConfig(
        dim=16,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=16,
        vocab_size=32,
        norm_eps=1e-5,
        rope_theta=1e4,
        context=64,
    )


def draw(shape: DecoderConfig, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw q [tokens, heads, head_dim] and k, v [tokens, kv_heads, head_dim]."""
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(tokens, shape.n_heads, shape.head_dim, generator=generator)
    k, v = torch.randn(2, tokens, shape.n_kv_heads, shape.head_dim, generator=generator)
    return q, k, v


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, one query and one head at a time, in float64: head h reads key head h // group."""
    out = torch.empty(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for token in range(q.shape[0]):
        for head in range(q.shape[1]):
            keys = k[: token + 1, head // group].double()
            weights = torch.softmax(keys @ q[token, head].double() / q.shape[2] ** 0.5, 0)
            out[token, head] = weights @ v[: token + 1, head // group].double()
    return out.float()


class Sequences:
    """Several sequences in one pool, their pages dealt out in any order."""

    def __init__(
        self, shape: DecoderConfig, tokens: list[int], dtype: torch.dtype, bits: int, seed: int = 0
    ) -> None:
        needed = [-(-count // PAGE) for count in tokens]
        self.pool = PagePool.allocate(shape, sum(needed) + 2, dtype, CPU, bits=bits)
        # Fresh memory may hold anything: one NaN that is read, even with weight 0, would spread.
        for store in (self.pool.keys, self.pool.values, self.pool.key_scales, self.pool.value_scales):
            if store is not None:
                store.fill_(torch.nan if store.is_floating_point() else 77)
        ids = list(range(self.pool.pages))
        random.Random(seed).shuffle(ids)
        # Behind a sequence's last page stands what must not be read.
        self.tables = torch.full((len(tokens), max(needed)), ids.pop(), dtype=torch.int32)
        for row, count in zip(self.tables, needed, strict=True):
            row[:count] = torch.tensor([ids.pop() for _ in range(count)])
        self.held = [0] * len(tokens)

    def step(self, parts: dict[int, int]) -> PagedStep:
        """Lay out a step of some tokens of some sequences, and count them as held."""
        rows = list(parts)
        starts = torch.tensor([self.held[row] for row in rows], dtype=torch.int32)
        counts = torch.tensor(list(parts.values()), dtype=torch.int32)
        for row, count in parts.items():
            self.held[row] += count
        return PagedStep(self.pool, self.tables[rows], starts, counts)


def run(sequences: Sequences, layer: int, parts: tuple[Tensor, Tensor, Tensor], sizes: list[int]) -> Tensor:
    """Feed one sequence in chunks to one layer."""
    split = zip(*(torch.split(part, sizes) for part in parts), strict=True)
    return torch.cat([sequences.step({0: len(q)})(layer, q, k, v) for q, k, v in split])


@st.composite
def batches(draw_from: st.DrawFn) -> tuple[DecoderConfig, list[list[int]], int]:
    n_kv_heads = draw_from(st.integers(1, 3))
    shape = config(n_kv_heads * draw_from(st.integers(1, 4)), n_kv_heads, 2 * draw_from(st.integers(1, 8)))
    chunks = st.lists(st.integers(1, 20), min_size=1, max_size=5)
    return shape, draw_from(st.lists(chunks, min_size=1, max_size=4)), draw_from(st.integers(0, 1000))


def feed(shape: DecoderConfig, sizes: list[list[int]], seed: int, bits: int) -> list[tuple[Tensor, Tensor]]:
    """Run sequences side by side, in chunks of any sizes: what was found, and what the formula says."""
    rng = random.Random(seed)
    parts = [draw(shape, sum(each), seed + index) for index, each in enumerate(sizes)]
    sequences = Sequences(shape, [sum(each) for each in sizes], torch.float32, bits, seed)
    left = {index: list(each) for index, each in enumerate(sizes)}
    found: list[list[Tensor]] = [[] for _ in sizes]
    while left:
        rows = rng.sample(sorted(left), rng.randint(1, len(left)))
        step = {row: left[row].pop(0) for row in rows}
        spans = {row: slice(sequences.held[row], sequences.held[row] + count) for row, count in step.items()}
        q, k, v = (torch.cat([parts[row][which][spans[row]] for row in rows]) for which in range(3))
        for row, out in zip(
            rows, torch.split(sequences.step(step)(1, q, k, v), list(step.values())), strict=True
        ):
            found[row].append(out)
        left = {row: each for row, each in left.items() if each}
    return [(torch.cat(outs), attention(*each)) for outs, each in zip(found, parts, strict=True)]


@given(batches())
def test_pages_equal_attention_over_the_whole(case: tuple[DecoderConfig, list[list[int]], int]) -> None:
    """Any sequences side by side, in chunks of any sizes, equal each one alone and in one piece."""
    for found, expected in feed(*case, bits=16):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@given(batches())
def test_8_bits_stay_within_what_rounding_can_do(case: tuple[DecoderConfig, list[list[int]], int]) -> None:
    """A key moves by at most half a step of max|k| / 127 in each channel, a value likewise.

    With |k| and |v| below 4.5 and |q| below 9 here, a step is 0.036: a value adds 0.018, and scores move by a
    few hundredths, which shifts weights among values that lie some units apart.
    """
    for found, expected in feed(*case, bits=8):
        assert float((found - expected).abs().max()) < 0.15
        assert float((found - expected).abs().mean()) < 0.03


@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 1000), st.floats(1e-4, 1e4))
def test_quantised_rows_are_within_half_a_step(rows: int, width: int, seed: int, size: float) -> None:
    x = size * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    q, scales = quantize_rows(x)
    assert q.dtype == torch.int8 and scales.dtype == torch.float16 and int(q.min()) >= -127
    # The scale itself is rounded by at most 2^-11 of its value, which counts 127 times at the end of the
    # range; below 2^-14 float16 has fewer digits.
    step = scales.float()[:, None]
    error = (dequantize_rows(q, scales, torch.float32) - x).abs()
    assert bool((error <= step * (0.5 + 127 * 2**-11) + 127 * 2**-25).all())


def test_rows_of_zeros_and_rows_that_are_not_finite_stay_so() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, torch.inf], [torch.nan, 1.0], [1e7, 1.0]])
    found = dequantize_rows(*quantize_rows(x), torch.float32)
    assert torch.equal(found[0], torch.zeros(2))
    assert not bool(
        found[1:].isfinite().all(1).any()
    )  # 1e7 / 127 is beyond float16: an error, not a wrong number


def test_whole_sequences_do_not_see_each_other() -> None:
    shape = config()
    first, second = draw(shape, 5, 0), draw(shape, 5, 1)
    both = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    found = WholeSequences(5)(0, *both)
    torch.testing.assert_close(found, torch.cat([attention(*first), attention(*second)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [8, 16])
def test_layers_are_kept_apart(bits: int) -> None:
    """All layers see a step before the next one, as in a forward pass."""
    shape = config()
    sequences = Sequences(shape, [19], torch.float32, bits)
    by_layer = [draw(shape, 19, seed) for seed in range(shape.n_layers)]
    found: list[list[Tensor]] = [[] for _ in by_layer]
    for start, end in ((0, 4), (4, 5), (5, 19)):
        step = sequences.step({0: end - start})
        for layer, parts in enumerate(by_layer):
            found[layer].append(step(layer, *(part[start:end] for part in parts)))
    for outs, parts in zip(found, by_layer, strict=True):
        torch.testing.assert_close(
            torch.cat(outs), attention(*parts), atol=1e-5 if bits == 16 else 0.15, rtol=0
        )


def test_a_step_that_was_not_counted_is_overwritten() -> None:
    shape = config()
    sequences = Sequences(shape, [4], torch.float32, 16)
    sequences.step({0: 3})(0, *draw(shape, 3, 8))
    sequences.held = [0]
    parts = draw(shape, 4, 9)
    torch.testing.assert_close(run(sequences, 0, parts, [4]), attention(*parts), atol=1e-5, rtol=0)


def test_a_step_beyond_its_pages_is_an_error() -> None:
    sequences = Sequences(config(), [16], torch.float32, 16)
    with pytest.raises(AssertionError):
        sequences.step({0: 17})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_caches_keep_their_dtype(dtype: torch.dtype) -> None:
    shape = config()
    parts = tuple(part.to(dtype) for part in draw(shape, 20, 5))
    sizes = [random.Random(0).randint(1, 3) for _ in range(9)]
    found = run(Sequences(shape, [20], dtype, 16), 0, parts, [*sizes, 20 - sum(sizes)])
    assert found.dtype == dtype
    # Outputs lie within the values' range of about 3; rounding of weights and output, each half a unit.
    bound = 3 * 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.float(), attention(*parts), atol=bound, rtol=0)


@pytest.mark.parametrize("bits", [8, 16])
def test_gathering_head_by_head_changes_nothing(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a long text keys and values are gathered for one key head at a time: memory stays bounded."""
    case = config(6, 3, 8), [[20, 1, 30, 1]], 3
    whole = feed(*case, bits=bits)
    monkeypatch.setattr("pixedge.kernels.attention.GATHERED_BYTES", 1)
    for (found, _), (expected, _) in zip(feed(*case, bits=bits), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
