"""Attention over pages: one query a sequence and many, in 16 bits and in 8, against float32."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import decoding, prefill, tuning
from pixedge.kernels.cuda.pages import PAGE, LayerPages

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda:0")
DTYPES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Absolute, of values of about 1: one rounding of the weights and one of the result."""


def random_pages(
    count: int, kv_heads: int, head_dim: int, dtype: torch.dtype, eight: bool, seed: int
) -> LayerPages:
    g = torch.Generator().manual_seed(seed)
    shape = (count, kv_heads, PAGE, head_dim)
    if not eight:
        return LayerPages(*(torch.randn(shape, generator=g).to(DEVICE, dtype) for _ in range(2)))
    stored = [torch.randint(-127, 128, shape, generator=g).to(DEVICE, torch.int8) for _ in range(2)]
    scales = [((1 + torch.rand(shape[:3], generator=g)) / 100).to(DEVICE, torch.float16) for _ in range(2)]
    return LayerPages(*stored, *scales)


def random_tables(lengths: list[int], seed: int) -> tuple[Tensor, int]:
    """Give every sequence pages of its own, scattered; return tables and the number of pages."""
    pages = max(1, max(-(-length // PAGE) for length in lengths))
    order = torch.randperm(pages * len(lengths), generator=torch.Generator().manual_seed(seed))
    return order.view(len(lengths), pages).to(DEVICE, torch.int32), pages * len(lengths)


@settings(max_examples=12)
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (1, 4), (2, 3), (2, 1)]),
    st.sampled_from((16, 40, 64)),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from((1, 2, 4)),
)
@example([130], (2, 4), 128, torch.bfloat16, True, 4)
@example([64, 0, 65], (1, 4), 64, torch.float16, False, 2)
def test_one_query_a_sequence(
    lengths: list[int], heads: tuple[int, int], head_dim: int, dtype: torch.dtype, eight: bool, parts: int
) -> None:
    kv_heads, groups = heads
    tables, count = random_tables(lengths, sum(lengths))
    pages = random_pages(count, kv_heads, head_dim, dtype, eight, sum(lengths))
    g = torch.Generator().manual_seed(7)
    q = torch.randn(len(lengths), kv_heads * groups, head_dim, generator=g).to(DEVICE, dtype)
    held = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    scratch = decoding.Parts.allocate(len(lengths), kv_heads * groups, head_dim, kv_heads, DEVICE, parts)
    for tensor in (scratch.sums, scratch.highest, scratch.weights):
        tensor.fill_(torch.nan)  # what a part has not written must not be read
    out = torch.full_like(q, torch.nan)
    found = decoding.attend(q, pages, tables, held, scratch, out)
    expected = decoding.attend_reference(q, pages, tables, held)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("eight", [False, True])
def test_keys_behind_the_end_are_not_seen(eight: bool) -> None:
    """A page is filled as a sequence grows: what lies behind its length is another request's, or NaN."""
    tables, count = random_tables([40], 3)
    pages = random_pages(count, 1, 32, torch.float16, eight, 3)
    q = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.float16)
    lengths = torch.tensor([37], dtype=torch.int32, device=DEVICE)
    scratch = decoding.Parts.allocate(1, 2, 32, 1, DEVICE, 2)
    before = decoding.attend(q, pages, tables, lengths, scratch, torch.empty_like(q)).clone()
    last = int(tables[0, 2])
    for tensor in (pages.key_scales, pages.value_scales) if eight else (pages.keys, pages.values):
        assert tensor is not None
        tensor[last, :, 5:] = torch.nan
    after = decoding.attend(q, pages, tables, lengths, scratch, torch.empty_like(q))
    assert torch.equal(before, after)


@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 80)), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (1, 2), (2, 2)]),
    st.sampled_from((16, 40)),
    st.sampled_from(DTYPES),
    st.booleans(),
)
@example([(33, 65)], (1, 2), 32, torch.float16, True)
@example([(0, 64)], (1, 2), 32, torch.bfloat16, False)
def test_many_queries_a_sequence(
    spans: list[tuple[int, int]], heads: tuple[int, int], head_dim: int, dtype: torch.dtype, eight: bool
) -> None:
    kv_heads, groups = heads
    counts = [count for _, count in spans]
    tables, pages_count = random_tables([start + count for start, count in spans], sum(counts))
    pages = random_pages(pages_count, kv_heads, head_dim, dtype, eight, sum(counts))
    g = torch.Generator().manual_seed(7)
    q = torch.randn(sum(counts), kv_heads * groups, head_dim, generator=g).to(DEVICE, dtype)
    starts = torch.tensor([start for start, _ in spans], dtype=torch.int32, device=DEVICE)
    firsts = torch.tensor([0, *counts], device=DEVICE).cumsum(0).to(torch.int32)
    out = torch.full_like(q, torch.nan)
    found = prefill.attend_many(q, pages, tables, starts, firsts, out, max(counts))
    expected = prefill.attend_many_reference(q, pages, tables, starts, firsts)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])


def test_the_last_query_is_a_decoding_step() -> None:
    tables, count = random_tables([90], 5)
    pages = random_pages(count, 2, 32, torch.float16, False, 5)
    q = torch.randn(50, 4, 32, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.float16)
    starts, firsts, lengths = (
        torch.tensor(values, dtype=torch.int32, device=DEVICE) for values in ([40], [0, 50], [90])
    )
    many = prefill.attend_many(q, pages, tables, starts, firsts, torch.empty_like(q), 50)
    scratch = decoding.Parts.allocate(1, 4, 32, 2, DEVICE, 2)
    last = q[-1:].contiguous()
    one = decoding.attend(last, pages, tables, lengths, scratch, torch.empty_like(last))
    torch.testing.assert_close(many[-1:], one, rtol=0, atol=1e-3)


def test_small_value_scales_keep_their_precision() -> None:
    """Values of about 1e-4 have scales near 1e-6, where float16 has a dozen steps left."""
    tables, count = random_tables([100], 9)
    pages = random_pages(count, 1, 32, torch.float16, True, 9)
    assert pages.value_scales is not None
    pages.value_scales.mul_(1e-4)
    q = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(3)).to(DEVICE, torch.float16)
    lengths = torch.tensor([100], dtype=torch.int32, device=DEVICE)
    scratch = decoding.Parts.allocate(1, 2, 32, 1, DEVICE, 1)
    found = decoding.attend(q, pages, tables, lengths, scratch, torch.empty_like(q)).float()
    expected = decoding.attend_reference(q, pages, tables, lengths).float()
    assert float((found - expected).abs().max() / expected.abs().max()) < 5e-3
