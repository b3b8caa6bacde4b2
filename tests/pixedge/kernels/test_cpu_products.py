"""The compiled products against float64, in every variant that this CPU has.

The bound is the one that 8-bit activations imply. x is rounded to q * s with s = max|x| / 127 over its group,
so each x is off by at most s / 2 and a sum by at most sum |w| * s / 2. Float32 adds less than 1e-5 of the
terms' magnitudes for as many terms as here, and the result is rounded to bfloat16 once.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cpu.products import (
    MOST_ROWS,
    Int4Cpu,
    Int8Cpu,
    dequantize_lines,
    pack_byte_lines,
    pack_lines,
    unpack_byte_lines,
    unpack_lines,
)
from pixedge.kernels.int8 import quantize_rows
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.packing import QuantizedWeight, dequantize, pack_gptq, read_gptq, read_imported_gptq
from tests.pixedge.kernels.cpu_variants import USABLE, chosen

CPU = torch.device("cpu")
UNIT = 2.0**-8

pytestmark = pytest.mark.skipif(not USABLE, reason="pixedge was installed without a C compiler")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weight(
    out_features: int, groups: int, group_size: int, seed: int, *, foreign: bool = False
) -> QuantizedWeight:
    """Draw values from all 16 and float16 scales over several powers of two; foreign: any zero points."""
    g = generator(seed)
    q = torch.randint(0, 16, (out_features, groups * group_size), dtype=torch.uint8, generator=g)
    exponents = torch.randint(-9, -3, (out_features, groups), generator=g)
    scales = ((1 + torch.rand(out_features, groups, generator=g)) * 2.0**exponents).half().float()
    zeros = torch.randint(0, 16, scales.shape, dtype=torch.uint8, generator=g) if foreign else None
    return QuantizedWeight(q, scales, group_size, zeros)


def random_x(tokens: int, in_features: int, seed: int) -> Tensor:
    """Draw numbers of very different sizes, as activations are."""
    g = generator(seed + 1)
    sizes = 2.0 ** torch.randint(-6, 6, (tokens, 1), generator=g)
    return (sizes * torch.randn(tokens, in_features, generator=g)).bfloat16()


def rounding_group(group: int) -> int:
    return next(size for size in range(128, 0, -8) if group % size == 0)


def assert_within_the_bound(found: Tensor, x: Tensor, weight: Tensor, group: int) -> None:
    """Compare with x [tokens, in] @ weight [out, in]^T, activations rounded in groups of ``group``."""
    exact = x.double() @ weight.double().t()
    sizes = x.double().abs().unflatten(1, (-1, group)).amax(-1) / 127  # [tokens, groups]
    off = sizes.repeat_interleave(group, dim=1) / 2 @ weight.double().abs().t()
    terms = x.double().abs() @ weight.double().abs().t()
    bound = off + 1e-5 * terms + (exact.abs() + off) * UNIT + 1e-30
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    assert bool(((found.double() - exact).abs() <= bound).all())
    # Roundings are random, evenly spread over a step: their sum stays far below. Four standard deviations,
    # because all outputs share them: where zero points give weights a mean, they are off by the same draw.
    steps = sizes.repeat_interleave(group, dim=1).square() / 12 @ weight.double().square().t()
    expected = (steps + (exact.abs() * UNIT).square() / 12).sum().sqrt()
    if found.numel() > 200:
        assert float((found.double() - exact).norm()) < 4 * float(expected)


def product(linear: Int4Linear | Int8Linear, x: Tensor) -> Tensor:
    y = linear(x)
    assert isinstance(y, Tensor)
    return y


@pytest.mark.parametrize("variant", USABLE)
@given(
    st.integers(1, 9).map(lambda blocks: 16 * blocks),
    st.integers(1, 4),
    st.sampled_from((8, 24, 32, 64, 128, 192, 200, 256)),
    st.integers(1, MOST_ROWS),
    st.booleans(),
    st.integers(0, 99),
)
def test_int4_of_few_rows(
    variant: str, out_features: int, groups: int, group: int, tokens: int, foreign: bool, seed: int
) -> None:
    quantized = random_weight(out_features, groups, group, seed, foreign=foreign)
    x = random_x(tokens, quantized.in_features, seed)
    with chosen(variant):
        linear = Int4Linear(quantized, torch.bfloat16, CPU)
        assert isinstance(linear.kernel, Int4Cpu) and (linear.zeros is None) != foreign
        assert_within_the_bound(
            product(linear, x), x, dequantize(quantized, torch.float64), rounding_group(group)
        )


@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("group", [1024, 4096])
def test_int4_with_one_group_for_all_inputs(variant: str, group: int) -> None:
    quantized = random_weight(32, 1, group, 0, foreign=True)
    x = random_x(3, group, 0)
    with chosen(variant):
        found = product(Int4Linear(quantized, torch.bfloat16, CPU), x)
    assert_within_the_bound(found, x, dequantize(quantized, torch.float64), 128)


@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("tokens", [0, 17, 40, 130])
@pytest.mark.parametrize("foreign", [False, True])
def test_int4_of_any_number_of_rows(variant: str, tokens: int, foreign: bool) -> None:
    quantized = random_weight(48, 3, 64, 1, foreign=foreign)
    x = random_x(tokens, 192, 0)
    with chosen(variant):
        found = product(Int4Linear(quantized, torch.bfloat16, CPU), x)
    assert found.shape == (tokens, 48)
    # where the product is one of floats, weights are rounded to bfloat16 instead
    exact = dequantize(quantized, torch.float64)
    size = x.double().abs() @ exact.abs().t()
    assert bool(((found.double() - x.double() @ exact.t()).abs() <= 2 * UNIT * size).all())


@pytest.mark.parametrize("variant", USABLE)
@given(
    st.integers(1, 60),
    st.sampled_from((8, 16, 40, 128, 136, 384)),
    st.integers(1, MOST_ROWS + 3),
    st.integers(0, 99),
)
def test_int8(variant: str, out_features: int, in_features: int, tokens: int, seed: int) -> None:
    """Outputs need not fill the last block; rows may be more than one pass takes."""
    weight = torch.randn(out_features, in_features, generator=generator(seed)).bfloat16()
    x = random_x(tokens, in_features, seed)
    with chosen(variant):
        linear = Int8Linear(weight, torch.bfloat16, CPU)
        assert isinstance(linear.kernel, Int8Cpu)
        q, scales = quantize_rows(weight)
        assert torch.equal(linear.weight, pack_byte_lines(q)) and torch.equal(linear.scales, scales.float())
        exact = q.double() * scales.double()[:, None]
        assert_within_the_bound(product(linear, x), x, exact, rounding_group(in_features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_int8_is_rounded_alike_from_every_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(37, 64, generator=generator(0)).to(dtype)
    weight[3] = 0
    q, scales = quantize_rows(weight)
    linear = Int8Linear(weight, torch.bfloat16, CPU)
    assert torch.equal(unpack_byte_lines(linear.weight, 37), q)
    assert torch.equal(linear.scales, scales.float())


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_lines_hold_what_was_packed(blocks: int, octets: int, seed: int) -> None:
    q = torch.randint(0, 16, (16 * blocks, 8 * octets), dtype=torch.uint8, generator=generator(seed))
    lines = pack_lines(q)
    assert torch.equal(unpack_lines(lines), q)
    # byte 4 r + j: input j in the low nibble, input 4 + j in the high one
    assert int(lines[0, 0, 4 * 5 + 3]) == int(q[5, 3]) + 16 * int(q[5, 7])


@pytest.mark.parametrize("variant", USABLE)
@given(st.integers(1, 70), st.integers(1, 40), st.sampled_from((8, 32)), st.integers(0, 99))
def test_gptq_words_become_the_same_lines(
    variant: str, blocks: int, groups: int, group: int, seed: int
) -> None:
    """Words are transposed in tiles of 32 blocks and 64 lines, whose edges must fit too."""
    quantized = random_weight(16 * blocks, groups, group, seed)
    with chosen(variant):
        lines, scales, *zeros = Int4Cpu().repack(read_gptq(pack_gptq(quantized), group), torch.bfloat16, CPU)
    assert torch.equal(lines, pack_lines(quantized.q)) and not zeros
    assert torch.equal(dequantize_lines(lines, scales, None), dequantize(quantized, torch.float32))


def test_reordered_columns_are_sorted_before_they_are_packed() -> None:
    quantized = random_weight(32, 2, 32, 0)
    tensors = pack_gptq(quantized)
    tensors["g_idx"] = tensors["g_idx"].flip(0)
    weight = read_imported_gptq(tensors, 32, 1)
    assert weight.order is not None
    x = random_x(4, 64, 0)
    exact = dequantize(weight.unpacked(), torch.float64)
    linear = Int4Linear(weight, torch.bfloat16, CPU)
    assert isinstance(linear.kernel, Int4Cpu)
    assert_within_the_bound(product(linear, x), x, exact, 32)


@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_none(variant: str, value: float) -> None:
    """Bytes have no NaN; the scale of its group carries it to every output, and to no other row."""
    x = random_x(3, 256, 0)
    x[1, 200] = value
    with chosen(variant):
        for linear in (
            Int4Linear(random_weight(16, 2, 128, 0), torch.bfloat16, CPU),
            Int8Linear(torch.randn(16, 256), torch.bfloat16, CPU),
        ):
            y = product(linear, x)
            assert bool(y[1].isnan().all()) and bool(y[[0, 2]].isfinite().all())


@pytest.mark.parametrize("variant", USABLE)
def test_extreme_activations(variant: str) -> None:
    """Zeros, the smallest numbers, and the largest values in every place: no sum of bytes overflows."""
    x = torch.zeros(4, 512).bfloat16()
    x[1], x[2], x[3] = 1e-38, 1e30, -1e30
    full = QuantizedWeight(torch.full((16, 512), 15, dtype=torch.uint8), torch.full((16, 4), 2.0**-20), 128)
    with chosen(variant):
        y = product(Int4Linear(full, torch.bfloat16, CPU), x).double()
        head = product(Int8Linear(torch.full((16, 512), -1e-6), torch.bfloat16, CPU), x).double()
    exact = x.double() @ dequantize(full, torch.float64).t()
    assert bool((y[0] == 0).all()) and bool((y[1].abs() < 1e-30).all())
    torch.testing.assert_close(y[2:], exact[2:], rtol=0.01, atol=0)
    expected = functional.linear(x[2:].double(), torch.full((16, 512), -1e-6).double())
    torch.testing.assert_close(head[2:], expected, rtol=0.01, atol=0)


def test_rows_that_do_not_lie_side_by_side() -> None:
    linear = Int4Linear(random_weight(32, 1, 32, 0), torch.bfloat16, CPU)
    wide = random_x(6, 64, 0)
    assert torch.equal(linear(wide[::2, 16:48]), linear(wide[::2, 16:48].contiguous()))


def test_batch_is_each_row_alone() -> None:
    """Up to the most rows of a pass each row gives bit for bit what it gives alone."""
    linear = Int4Linear(random_weight(64, 3, 128, 0), torch.bfloat16, CPU)
    x = random_x(MOST_ROWS, 384, 0)
    together = product(linear, x)
    for row in range(MOST_ROWS):
        assert torch.equal(product(linear, x[row : row + 1])[0], together[row])
