"""The cache against attention written out over the whole sequence, however its tokens arrive."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.decoder import WholeSequences
from pixedge.kv_cache import KVCache

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


def run(cache: KVCache, layer: int, parts: tuple[Tensor, Tensor, Tensor], sizes: list[int]) -> Tensor:
    """Feed a sequence in chunks to one layer."""
    outs = []
    for q, k, v in zip(*(part.split(sizes) for part in parts), strict=True):
        outs.append(cache(layer, q, k, v))
        cache.advance(len(q))
    return torch.cat(outs)


@st.composite
def chunked(draw_from: st.DrawFn) -> tuple[DecoderConfig, list[int], int]:
    n_kv_heads = draw_from(st.integers(1, 3))
    shape = config(n_kv_heads * draw_from(st.integers(1, 4)), n_kv_heads, 2 * draw_from(st.integers(1, 8)))
    sizes = draw_from(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    return shape, sizes, draw_from(st.integers(0, 1000))


@given(chunked())
def test_any_chunks_equal_attention_over_the_whole(case: tuple[DecoderConfig, list[int], int]) -> None:
    shape, sizes, seed = case
    parts = draw(shape, sum(sizes), seed)
    expected = attention(*parts)
    found = run(KVCache(shape, sum(sizes), torch.float32, CPU), 1, parts, sizes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(WholeSequences(sum(sizes))(0, *parts), expected, atol=1e-5, rtol=0)


def test_whole_sequences_do_not_see_each_other() -> None:
    shape = config()
    first, second = draw(shape, 5, 0), draw(shape, 5, 1)
    both = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    found = WholeSequences(5)(0, *both)
    torch.testing.assert_close(found, torch.cat([attention(*first), attention(*second)]), atol=1e-5, rtol=0)


def test_layers_are_kept_apart() -> None:
    """All layers see a step before it counts, as in a forward pass."""
    shape = config()
    cache = KVCache(shape, 9, torch.float32, CPU)
    by_layer = [draw(shape, 9, seed) for seed in range(shape.n_layers)]
    found: list[list[Tensor]] = [[] for _ in by_layer]
    for start, end in ((0, 4), (4, 5), (5, 9)):
        for layer, parts in enumerate(by_layer):
            found[layer].append(cache(layer, *(part[start:end] for part in parts)))
        cache.advance(end - start)
    for outs, parts in zip(found, by_layer, strict=True):
        torch.testing.assert_close(torch.cat(outs), attention(*parts), atol=1e-5, rtol=0)


def test_room_not_yet_written_is_never_read() -> None:
    """Fresh memory may hold anything: one NaN that is read, even with weight 0, would spread."""
    shape = config()
    cache = KVCache(shape, 12, torch.float32, CPU)
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    parts = draw(shape, 7, 3)
    found = run(cache, 0, parts, [3, 1, 1, 2])
    torch.testing.assert_close(found, attention(*parts), atol=1e-5, rtol=0)
    assert bool(cache.keys[:, :, 7:].isnan().all()) and cache.length == 7


def test_capacity_is_exact() -> None:
    shape = config()
    cache = KVCache(shape, 6, torch.float32, CPU)
    assert cache.keys.shape == cache.values.shape == (shape.n_layers, shape.n_kv_heads, 6, shape.head_dim)
    run(cache, 0, draw(shape, 6, 0), [5, 1])
    assert cache.length == cache.capacity == 6
    with pytest.raises(AssertionError, match="7 tokens in a cache for 6"):
        cache(0, *draw(shape, 1, 0))
    with pytest.raises(AssertionError):
        cache.advance(1)


def test_a_step_that_was_not_counted_is_overwritten() -> None:
    shape = config()
    cache = KVCache(shape, 4, torch.float32, CPU)
    cache(0, *draw(shape, 3, 8))
    parts = draw(shape, 4, 9)
    torch.testing.assert_close(run(cache, 0, parts, [4]), attention(*parts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_caches_keep_their_dtype(dtype: torch.dtype) -> None:
    shape = config()
    parts = tuple(part.to(dtype) for part in draw(shape, 20, 5))
    sizes = [random.Random(0).randint(1, 3) for _ in range(9)]
    found = run(KVCache(shape, 20, dtype, CPU), 0, parts, [*sizes, 20 - sum(sizes)])
    assert found.dtype == dtype
    # Outputs lie within the values' range of about 3; rounding of weights and output, each half a unit.
    bound = 3 * 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.float(), attention(*parts), atol=bound, rtol=0)
