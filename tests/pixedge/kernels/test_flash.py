"""A prompt's attention over pages, against attention in float64 over what the pages hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixedge.kernels.attention import PAGE, attend_pages, causal_mask, read_pages, write_pages
from pixedge.kernels.cpu.compiled import variant
from pixedge.kernels.cpu.flash import flash_pages

pytestmark = pytest.mark.skipif(variant() != "amx", reason="needs a CPU with AMX (bfloat16 matrix tiles)")

Side = tuple[Tensor, Tensor | None]


def cache(length: int, kv_heads: int, head_dim: int, bits: int, seed: int) -> tuple[Side, Side, Tensor]:
    """Fill shuffled pages with ``length`` random tokens; what no token wrote is NaN, or its scale is."""
    random = torch.Generator().manual_seed(seed)
    used = -(-length // PAGE)
    table = torch.randperm(used + 2, generator=random)[:used].to(torch.int32)
    sides: list[Side] = []
    for _ in range(2):
        shape = (used + 2, kv_heads, PAGE, head_dim)
        if bits == 8:
            scales = torch.full(shape[:3], torch.nan, dtype=torch.float16)
            side: Side = (torch.full(shape, 99, dtype=torch.int8), scales)
        else:
            side = (torch.full(shape, torch.nan, dtype=torch.bfloat16), None)
        x = torch.randn(length, kv_heads, head_dim, generator=random).to(torch.bfloat16)
        places = torch.arange(length)
        write_pages(*side, x, table[places // PAGE].long(), places % PAGE)
        sides.append(side)
    return sides[0], sides[1], table


def exact(q: Tensor, keys: Side, values: Side, table: Tensor, start: int) -> Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) v in float64, from the bfloat16 values of the pages."""
    tokens, heads, head_dim = q.shape
    kv_heads = keys[0].shape[1]
    k, v = (
        read_pages(*side, table.long(), start + tokens, slice(0, kv_heads), torch.bfloat16)
        .double()
        .repeat_interleave(heads // kv_heads, 0)
        for side in (keys, values)
    )  # [heads, keys, head_dim]
    scores = q.double().transpose(0, 1) @ k.transpose(1, 2) / head_dim**0.5
    hidden = torch.arange(start + tokens) > torch.arange(start, start + tokens)[:, None]
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.one_of(st.sampled_from([1, 16, 17, 33]), st.integers(1, 90)),
    start=st.one_of(st.sampled_from([0, 1, 15, 16, 255, 256, 257]), st.integers(0, 600)),
    kv_heads=st.integers(1, 3),
    shared=st.sampled_from([1, 2, 3, 4, 8]),
    head_dim=st.sampled_from([32, 64, 96, 128, 256]),
    bits=st.sampled_from([8, 16]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_flash_is_attention(
    tokens: int,
    start: int,
    kv_heads: int,
    shared: int,
    head_dim: int,
    bits: int,
    threads: int,
    seed: int,
) -> None:
    keys, values, table = cache(start + tokens, kv_heads, head_dim, bits, seed)
    random = torch.Generator().manual_seed(seed + 1)
    q = 3 * torch.randn(tokens, kv_heads * shared, head_dim, generator=random)
    q = q.to(torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # the library follows torch
    try:
        out = flash_pages(q, keys, values, table, start)
    finally:
        torch.set_num_threads(before)
    assert out is not None and out.shape == q.shape and out.dtype == torch.bfloat16
    wanted = exact(q, keys, values, table, start)
    # A weight's rounding is at most 2^-9 of it, and weights add up to 1; then the result's own rounding.
    largest = values[0].nan_to_num(0).abs().float().max() if bits == 16 else 6.0
    error = (out.double() - wanted).abs()
    assert bool((error <= 2**-9 * largest + wanted.abs() * 2**-8 + 1e-4).all()), float(error.max())
    # and no further from the truth than torch's own kernel, give or take an eighth
    mask = causal_mask(start, tokens, q.dtype, q.device)
    theirs = attend_pages(q, keys, values, table.long(), start, mask)
    assert float(error.mean()) <= 1.125 * float((theirs.double() - wanted).abs().mean()) + 1e-4


def test_many_rows_of_a_head_go_in_chunks() -> None:
    """600 tokens of 4 shared heads are 2,400 rows, more than the 1,024 of a chunk."""
    keys, values, table = cache(700, 1, 128, 16, seed=1)
    q = torch.randn(600, 4, 128, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    out = flash_pages(q, keys, values, table, 100)
    assert out is not None
    error = (out.double() - exact(q, keys, values, table, 100)).abs()
    assert float(error.max()) < 0.02


def test_large_scores_neither_overflow_nor_vanish() -> None:
    """Scores of some thousand, where one key takes all the weight, at each end of a run of 256 keys."""
    keys, values, table = cache(300, 1, 64, 16, seed=3)
    q = (300 * torch.randn(20, 2, 64, generator=torch.Generator().manual_seed(4))).to(torch.bfloat16)
    out = flash_pages(q, keys, values, table, 280)
    assert out is not None and bool(out.isfinite().all())
    assert float((out.double() - exact(q, keys, values, table, 280)).abs().max()) < 0.03


def test_nan_stays_in_its_head_and_token() -> None:
    keys, values, table = cache(64, 2, 64, 16, seed=5)
    q = torch.randn(40, 4, 64, generator=torch.Generator().manual_seed(6)).to(torch.bfloat16)
    clean = flash_pages(q, keys, values, table, 24)
    q[7, 1, 3] = torch.nan
    out = flash_pages(q, keys, values, table, 24)
    assert clean is not None and out is not None
    assert bool(out[7, 1].isnan().all())
    out[7, 1] = clean[7, 1]
    assert torch.equal(out, clean)


def test_odd_heads_are_left_to_the_caller() -> None:
    keys, values, table = cache(20, 1, 48, 16, seed=7)
    assert flash_pages(torch.zeros(4, 1, 48, dtype=torch.bfloat16), keys, values, table, 16) is None
