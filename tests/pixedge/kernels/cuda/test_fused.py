"""The small kernels between the products: norm, activation, rotary with the cache's write."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixedge.decoder import RMSNorm
from pixedge.rope import apply_rotary, rotary_1d

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import activation, norm, rotary, tuning
from pixedge.kernels.cuda.pages import PAGE, LayerPages

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda:0")
DTYPES = (torch.float16, torch.bfloat16)
UNIT = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""The distance of neighbouring numbers, relative: the interpreter cuts bfloat16 off."""


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@settings(max_examples=12)
@given(
    st.integers(1, 5),
    st.integers(1, 600),
    st.integers(0, 4),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from((1.0, 1e-3)),
)
@example(1, 5120, 3, torch.bfloat16, True, 1.0)
@example(2, 40, 0, torch.float16, True, 1e-3)
def test_add_norm(rows: int, n: int, splits: int, dtype: torch.dtype, wide: bool, scale: float) -> None:
    """At a scale of 1e-3 the mean square is a tenth of epsilon, which then decides the result."""
    residual = scale * draw((rows, n), n, torch.float32 if wide else dtype)
    partials = scale * draw((splits, rows, n), n + 1) if splits else None
    weight = draw((n,), n + 2, dtype)
    total, normed = norm.add_norm_reference(residual, partials, weight, 1e-5)
    out = torch.full((rows, n), torch.nan, dtype=dtype, device=DEVICE)
    held = residual.clone()
    assert norm.add_norm(held, partials, weight, 1e-5, out) is out
    torch.testing.assert_close(held, total, rtol=1e-5 if wide else UNIT[dtype], atol=1e-5 * scale)
    torch.testing.assert_close(out, normed, rtol=4 * UNIT[dtype], atol=1e-5)


def test_the_reference_is_the_decoders_norm() -> None:
    x, module = draw((3, 40), 0, torch.float16), RMSNorm(40, 1e-5).to(DEVICE, torch.float16)
    module.weight.data = draw((40,), 1, torch.float16)
    torch.testing.assert_close(norm.add_norm_reference(x, None, module.weight, 1e-5)[1], module(x))


@settings(max_examples=12)
@given(st.integers(1, 5), st.integers(1, 1500), st.integers(1, 3), st.sampled_from(DTYPES))
def test_silu_mul(rows: int, n: int, splits: int, dtype: torch.dtype) -> None:
    partials = 4 * draw((splits, rows, 2 * n), n)
    out = torch.full((rows, n), torch.nan, dtype=dtype, device=DEVICE)
    expected = activation.silu_mul_reference(partials, dtype)
    torch.testing.assert_close(activation.silu_mul(partials, out), expected, rtol=2 * UNIT[dtype], atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's; the kernel means it
def test_silu_of_large_numbers() -> None:
    partials = torch.tensor([[[-1e30, -200.0, 200.0, 2.0, 2.0, 2.0]]], device=DEVICE)
    out = torch.empty(1, 3, dtype=torch.float16, device=DEVICE)
    assert activation.silu_mul(partials, out).tolist() == [[0.0, 0.0, 400.0]]


def empty_pages(pages: int, kv_heads: int, head_dim: int, dtype: torch.dtype, eight: bool) -> LayerPages:
    shape = (pages, kv_heads, PAGE, head_dim)
    if not eight:
        return LayerPages(*(torch.full(shape, 7.0, dtype=dtype, device=DEVICE) for _ in range(2)))
    stored = (torch.full(shape, 7, dtype=torch.int8, device=DEVICE) for _ in range(2))
    scales = (torch.full(shape[:3], 7.0, dtype=torch.float16, device=DEVICE) for _ in range(2))
    return LayerPages(*stored, *scales)


@settings(max_examples=12)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from((2, 24, 64, 128)),
    st.lists(st.integers(-1, 60), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from(DTYPES),
    st.booleans(),
)
@example(4, 2, 128, [17], 2, torch.float16, True)
def test_rotate_and_write(
    groups: int,
    kv_heads: int,
    head_dim: int,
    positions: list[int],
    splits: int,
    dtype: torch.dtype,
    eight: bool,
) -> None:
    tokens, heads = len(positions), groups * kv_heads
    qkv = draw((splits, tokens, (heads + 2 * kv_heads) * head_dim), head_dim)
    at = torch.tensor(positions, dtype=torch.int32, device=DEVICE)
    cos, sin = rotary_1d(at, head_dim, 1e4)
    order = torch.randperm(4 * tokens, generator=torch.Generator().manual_seed(tokens))
    tables = order.view(tokens, 4).to(DEVICE, torch.int32)
    sequences = torch.arange(tokens, dtype=torch.int32, device=DEVICE).flip(0).contiguous()
    found, expected = (empty_pages(4 * tokens, kv_heads, head_dim, dtype, eight) for _ in range(2))
    queries = torch.full((tokens, heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)
    rotary.rotate_and_write(qkv, cos, sin, at, sequences, tables, found, queries)
    turned = rotary.rotate_and_write_reference(qkv, cos, sin, at, sequences, tables, expected, dtype)
    tolerance = {"rtol": 2 * UNIT[dtype], "atol": 2 * UNIT[dtype]}
    torch.testing.assert_close(queries, turned, **tolerance)
    for one, other in ((found.keys, expected.keys), (found.values, expected.values)):
        if eight:  # one step of the grid, where a sum or a scale was rounded the other way
            assert int((one.int() - other.int()).abs().max()) <= (1 if dtype == torch.float16 else 2)
        else:
            torch.testing.assert_close(one, other, **tolerance)
    if found.key_scales is not None:
        torch.testing.assert_close(found.key_scales, expected.key_scales, rtol=2 * UNIT[dtype], atol=1e-5)
        torch.testing.assert_close(found.value_scales, expected.value_scales, rtol=2 * UNIT[dtype], atol=1e-5)
    x = qkv.sum(0).view(tokens, -1, head_dim)[:, :heads]
    torch.testing.assert_close(queries, apply_rotary(x, cos, sin).to(dtype), **tolerance)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero)")  # NumPy's; it is what is tested
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_stays_so_in_eight_bits(bad: float) -> None:
    qkv = torch.ones(1, 1, 3 * 16, device=DEVICE)
    qkv[0, 0, 40] = bad
    pages = empty_pages(1, 1, 16, torch.bfloat16, True)
    zero = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    cos, sin = rotary_1d(zero, 16, 1e4)
    queries = torch.empty(1, 1, 16, dtype=torch.bfloat16, device=DEVICE)
    rotary.rotate_and_write(qkv, cos, sin, zero, zero, zero[:, None], pages, queries)
    assert pages.key_scales is not None and pages.value_scales is not None
    assert bool(pages.key_scales[0, 0, 0].isfinite()) and not bool(pages.value_scales[0, 0, 0].isfinite())


@pytest.mark.parametrize("eight", [False, True])
def test_keys_and_values_are_rounded_to_the_nearest_not_truncated(eight: bool) -> None:
    """Numbers at three quarters of a step; the tolerance of a whole step elsewhere lets truncation pass."""
    base, step = (0.0, 1.0) if eight else (1.0, 2.0**-10)
    row = torch.full((16,), base + 0.75 * step, device=DEVICE)
    row[1::2] *= -1
    if eight:
        row[0] = 127.0  # which makes the scale exactly 1
    pages = empty_pages(1, 1, 16, torch.float16, eight)
    zero = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    cos, sin = torch.ones(1, 8, device=DEVICE), torch.zeros(1, 8, device=DEVICE)
    queries = torch.empty(1, 1, 16, dtype=torch.float16, device=DEVICE)
    rotary.rotate_and_write(row.repeat(3).view(1, 1, 48), cos, sin, zero, zero, zero[:, None], pages, queries)
    expected = torch.full((16,), base + step)
    expected[1::2] *= -1
    if eight:
        expected[0] = 127.0
    for stored in (pages.keys, pages.values):
        assert stored[0, 0, 0].float().tolist() == expected.tolist()


def test_a_row_of_zeros_has_scale_zero() -> None:
    pages = empty_pages(1, 1, 16, torch.float16, True)
    zero = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    cos, sin = rotary_1d(zero, 16, 1e4)
    queries = torch.empty(1, 1, 16, dtype=torch.float16, device=DEVICE)
    qkv = torch.zeros(1, 1, 48, device=DEVICE)
    rotary.rotate_and_write(qkv, cos, sin, zero, zero, zero[:, None], pages, queries)
    assert pages.key_scales is not None and float(pages.key_scales[0, 0, 0]) == 0.0
    assert not pages.keys[0, 0, 0].any() and bool((pages.keys[0, 0, 1] == 7).all())
