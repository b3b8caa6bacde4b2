"""Products with 4-bit and 8-bit weights against the same product in float64, on every shape that may come."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pixedge.kernels import int4, int8
from pixedge.kernels.cpu.compiled import TORCH, VARIABLE
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.packing import QuantizedWeight, dequantize

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BFLOAT16_UNIT = 2.0**-8
"""Half the distance of neighbouring bfloat16 numbers, relative: what one rounding costs at most."""


@pytest.fixture(autouse=True, scope="module")
def without_the_library() -> Iterator[None]:
    """What serves where the compiled library does not; it has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, TORCH)
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weight(out_features: int, groups: int, group_size: int, seed: int) -> QuantizedWeight:
    """Draw values from all 16 and scales over several powers of two, exact in bfloat16 and float16."""
    g = generator(seed)
    q = torch.randint(0, 16, (out_features, groups * group_size), dtype=torch.uint8, generator=g)
    exponents = torch.randint(-9, -3, (out_features, groups), generator=g)
    scales = (1 + torch.rand(out_features, groups, generator=g)).bfloat16().float() * 2.0**exponents
    return QuantizedWeight(q, scales, group_size)


def random_x(tokens: int, in_features: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(tokens, in_features, generator=generator(seed + 1)).to(dtype)


def assert_close_to_exact(found: Tensor, x: Tensor, weight: Tensor, roundings: float) -> None:
    """Compare with x [tokens, in] @ weight [out, in]^T in float64.

    roundings: how many units of the dtype each term may be off. The bound is of the terms' magnitudes, since
    a sum may cancel; float32 sums of a few hundred terms add less than 1e-5.
    """
    exact = x.double() @ weight.double().t()
    magnitude = x.double().abs() @ weight.double().abs().t()
    unit = torch.finfo(x.dtype).eps / 2
    excess = (found.double() - exact).abs() - (roundings * unit + 1e-5) * magnitude
    assert found.dtype == x.dtype and found.shape == exact.shape
    assert excess.max() <= 1e-30, (
        f"beyond the bound by {float(excess.max()):.3g} of {float(magnitude.max()):.3g}"
    )


# 4 bits


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 20), st.sampled_from(DTYPES), st.integers(0, 99))
def test_int4_reference_holds_what_packing_says(
    out_features: int, groups: int, half_group: int, dtype: torch.dtype, seed: int
) -> None:
    quantized = random_weight(out_features, groups, 2 * half_group, seed)
    reference = int4.Reference()
    weight, scales = reference.repack(quantized, dtype, CPU)
    assert weight.nbytes * 2 == quantized.q.numel()
    assert torch.equal(reference.dequantize(weight, scales), dequantize(quantized, dtype))


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_int4_reference_in_float32_is_exact_but_for_the_sums(
    out_features: int, groups: int, tokens: int, seed: int
) -> None:
    quantized = random_weight(out_features, groups, 32, seed)
    x = random_x(tokens, quantized.in_features, torch.float32, seed)
    reference = int4.Reference()
    found = reference.matmul(x, *reference.repack(quantized, x.dtype, CPU))
    assert_close_to_exact(found, x, dequantize(quantized, torch.float64), roundings=0)


INT4_SHAPES = {
    "out_features": st.integers(1, 14).map(lambda blocks: 16 * blocks),
    "groups": st.integers(1, 3),
    "group_size": st.sampled_from((32, 64, 128, 256)),
    "tokens": st.integers(1, 35),
    "seed": st.integers(0, 99),
}


@given(**INT4_SHAPES)
def test_int4_of_torch_equals_the_reference_within_bfloat16(
    out_features: int, groups: int, group_size: int, tokens: int, seed: int
) -> None:
    """Outputs in every multiple of 16: the operator's own block is 64 wide on AVX-512 and 32 on AVX2."""
    quantized = random_weight(out_features, groups, group_size, seed)
    kernel = int4.choose(torch.bfloat16, CPU, out_features, group_size)
    assert isinstance(kernel, int4.TorchCpu)
    x = random_x(tokens, quantized.in_features, torch.bfloat16, seed)
    found = kernel.matmul(x, *kernel.repack(quantized, x.dtype, CPU))
    # one rounding of each weight, one of the result
    assert_close_to_exact(found, x, dequantize(quantized, torch.float64), roundings=2)


@given(st.integers(1, 70), st.sampled_from((8, 16, 24, 32, 40, 64, 128)), st.integers(1, 9))
def test_int4_serves_every_shape_in_bfloat16(out_features: int, group_size: int, tokens: int) -> None:
    """Shapes that torch's operator refuses go to the reference, not to an error in the middle of a load."""
    quantized = random_weight(out_features, 2, group_size, out_features)
    x = random_x(tokens, quantized.in_features, torch.bfloat16, tokens)
    linear = Int4Linear(quantized, torch.bfloat16, CPU)
    fast = out_features % 16 == 0 and group_size in (32, 64, 128)
    assert isinstance(linear.kernel, int4.TorchCpu if fast else int4.Reference)
    assert_close_to_exact(linear(x), x, dequantize(quantized, torch.float64), roundings=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int4_takes_the_reference_in_other_dtypes(dtype: torch.dtype) -> None:
    quantized = random_weight(64, 2, 128, 0)
    linear = Int4Linear(quantized, dtype, CPU)
    assert isinstance(linear.kernel, int4.Reference)
    x = random_x(3, 256, dtype, 0)
    assert_close_to_exact(linear(x), x, dequantize(quantized, torch.float64), roundings=2)


def test_int4_of_torch_reads_rows_that_do_not_lie_side_by_side() -> None:
    quantized = random_weight(32, 1, 32, 0)
    linear = Int4Linear(quantized, torch.bfloat16, CPU)
    wide = random_x(6, 64, torch.bfloat16, 0)
    assert torch.equal(linear(wide[::2, 16:48]), linear(wide[::2, 16:48].contiguous()))


# 4 bits, of other quantisers


def random_foreign(out_features: int, groups: int, group_size: int, seed: int) -> QuantizedWeight:
    """Draw any zero points, scales that only float16 holds, and columns in any order."""
    plain = random_weight(out_features, groups, group_size, seed)
    g = generator(seed + 7)
    zeros = torch.randint(0, 16, plain.scales.shape, dtype=torch.uint8, generator=g)
    scales = (plain.scales * (1 + torch.rand(plain.scales.shape, generator=g))).half().float()
    return QuantizedWeight(plain.q, scales, group_size, zeros, torch.randperm(plain.in_features, generator=g))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 20), st.sampled_from(DTYPES), st.integers(0, 99))
def test_int4_reference_with_any_zero_points(
    out_features: int, groups: int, half_group: int, dtype: torch.dtype, seed: int
) -> None:
    quantized = random_foreign(out_features, groups, 2 * half_group, seed)
    x = random_x(3, quantized.in_features, dtype, seed)
    linear = Int4Linear(quantized, torch.float32, CPU)
    assert_close_to_exact(linear(x.float()), x.float(), dequantize(quantized, torch.float64), roundings=0)
    kernel = int4.Reference()
    found = kernel.matmul(x[:, quantized.order], *kernel.repack(quantized, dtype, CPU))
    # the scale, the weight, the result
    assert_close_to_exact(found, x, dequantize(quantized, torch.float64), roundings=3)


@given(**INT4_SHAPES)
def test_int4_of_torch_with_any_zero_points(
    out_features: int, groups: int, group_size: int, tokens: int, seed: int
) -> None:
    """The bound of TorchCpu's docstring: a rounding of the scale, one of (8 - zero) * scale, one of the sum.

    The second is absolute: it is of the distance from 8, and so largest where the weight itself is small. On
    sums of random signs it stays far below the bound; here x has one sign, and it adds up.
    """
    quantized = random_foreign(out_features, groups, group_size, seed)
    assert quantized.zeros is not None and quantized.order is not None
    x = random_x(tokens, quantized.in_features, torch.bfloat16, seed).abs()
    linear = Int4Linear(quantized, torch.bfloat16, CPU)
    assert isinstance(linear.kernel, int4.TorchCpu)
    exact = dequantize(quantized, torch.float64)
    distance = (8 - quantized.zeros.double()) * quantized.scales.double()  # [out, groups]
    offset = torch.empty_like(exact)
    offset[:, quantized.order] = distance.repeat_interleave(group_size, dim=1)
    magnitude = x.double() @ (2 * exact.abs() + offset.abs()).t()
    error = (linear(x).double() - x.double() @ exact.t()).abs()
    # the second order of roundings, and float32's sums
    assert bool((error <= (1.02 * BFLOAT16_UNIT + 1e-5) * magnitude + 1e-30).all())


@pytest.mark.parametrize("inputs", [96, 160, 512, 640, 14336])
def test_a_group_of_all_inputs_is_split_for_torch(inputs: int) -> None:
    """Per channel: 14,336 inputs are 56 groups of 256 with one scale, 160 are five of 32."""
    quantized = random_foreign(32, 1, inputs, inputs)
    linear = Int4Linear(quantized, torch.bfloat16, CPU)
    assert isinstance(linear.kernel, int4.TorchCpu)
    x = random_x(5, inputs, torch.bfloat16, 0)
    expected = functional.linear(x.double(), dequantize(quantized, torch.float64))
    spread = float(expected.std())
    assert float((linear(x).double() - expected).abs().max()) < 0.05 * spread


def test_columns_of_sorted_groups_meet_their_inputs() -> None:
    quantized = random_foreign(16, 4, 32, 0)
    natural = QuantizedWeight(quantized.q, quantized.scales, 32, quantized.zeros)
    x = random_x(3, 128, torch.float32, 0)
    ordered, plain = (Int4Linear(weight, torch.float32, CPU) for weight in (quantized, natural))
    assert torch.equal(ordered(x), plain(x[:, quantized.order]))
    assert not torch.allclose(ordered(x), plain(x))


def test_symmetric_weights_take_no_zero_points() -> None:
    """What pixedge exports is packed and computed as if there were no others: no offsets, no reordering."""
    quantized = random_weight(32, 2, 32, 0)
    for dtype in (torch.bfloat16, torch.float32):
        linear = Int4Linear(quantized, dtype, CPU)
        assert linear.order is None and "order" not in linear.state_dict()
        if dtype == torch.bfloat16:
            assert bool((linear.scales[..., 1] == 0).all())
        else:
            assert linear.scales.shape == (32, 2)


# 8 bits


@given(
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.sampled_from((1e-6, 1e-2, 1.0, 1e4)),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_rows_are_rounded_to_half_a_scale(
    rows: int, columns: int, dtype: torch.dtype, size: float, at_once: int, seed: int
) -> None:
    weight = (size * torch.randn(rows, columns, generator=generator(seed))).to(dtype)
    q, scales = int8.quantize_rows(weight, rows_at_once=at_once)
    assert q.dtype == torch.int8 and scales.dtype == torch.bfloat16 and int(q.min()) >= -127
    error = (weight.double() - q.double() * scales.double()[:, None]).abs()
    assert bool((error <= (0.5 + 1e-6) * scales.double()[:, None]).all())
    # the scale itself is as small as it can be: the row's largest value over 127, rounded
    largest = weight.double().abs().amax(1)
    assert bool((scales.double() * 127 <= largest * (1.000001 + BFLOAT16_UNIT) + 127 * 2.0**-126).all())


def test_a_row_of_zeros_stays_zero() -> None:
    weight = torch.randn(3, 32, generator=generator(0))
    weight[1] = 0
    q, scales = int8.quantize_rows(weight)
    assert bool((q[1] == 0).all()) and bool((scales > 0).all())  # 0 / 0 would be undefined as a byte
    for dtype in DTYPES:
        linear = Int8Linear(weight, dtype, CPU)
        y = linear(random_x(4, 32, dtype, 0))
        assert bool((y[:, 1] == 0).all()) and bool(y.isfinite().all())


@pytest.mark.parametrize("value", [1e-38, 1e-30, 1e30, 3.3e38])
def test_extreme_rows_keep_their_values(value: float) -> None:
    """The extremes of bfloat16: neither a scale of 0 nor one that overflows, and no other row suffers."""
    weight = torch.randn(3, 32, generator=generator(0)).clamp(-1, 1)
    weight[1] *= value
    q, scales = int8.quantize_rows(weight.bfloat16())
    assert bool(scales.isfinite().all()) and bool((scales > 0).all())
    ordinary, _ = int8.quantize_rows(weight[[0, 2]].bfloat16())
    assert torch.equal(q[[0, 2]], ordinary)
    error = (weight[1].bfloat16().double() - q[1].double() * scales[1].double()).abs()
    assert float(error.max()) <= max(0.51 * float(scales[1]), 2.0**-126)


@given(
    st.integers(1, 70).map(lambda blocks: 16 * blocks),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_int8_of_torch_equals_the_reference_within_bfloat16(
    in_features: int, out_features: int, tokens: int, seed: int
) -> None:
    q, scales = int8.quantize_rows(torch.randn(out_features, in_features, generator=generator(seed)))
    x = random_x(tokens, in_features, torch.bfloat16, seed)
    kernel = int8.choose(torch.bfloat16, CPU, in_features)
    assert isinstance(kernel, int8.TorchCpu)
    exact = q.double() * scales.double()[:, None]
    assert_close_to_exact(kernel.matmul(x, q, scales), x, exact, roundings=2)
    assert_close_to_exact(int8.Reference(7).matmul(x, q, scales), x, exact, roundings=3)


@given(st.integers(1, 70), st.integers(1, 20), st.integers(1, 9), st.sampled_from(DTYPES))
@example(17, 33, 3, torch.bfloat16)
def test_int8_serves_every_shape(
    in_features: int, out_features: int, tokens: int, dtype: torch.dtype
) -> None:
    """torch 2.13's operator reads in vectors of 16 inputs and does not stop at a row's end.

    With 17 inputs it gives NaN or ends the process, on AVX-512 and, with vectors of 8, on AVX2. Such widths
    must go to the reference; a false pass would need memory behind the row that happens to be 0.
    """
    weight = torch.randn(out_features, in_features, generator=generator(tokens))
    linear = Int8Linear(weight, dtype, CPU)
    fast = dtype == torch.bfloat16 and in_features % 16 == 0
    assert isinstance(linear.kernel, int8.TorchCpu if fast else int8.Reference)
    x = random_x(tokens, in_features, dtype, out_features)
    exact = linear.weight.double() * linear.scales.double()[:, None]
    assert_close_to_exact(linear(x), x, exact, roundings=3)


def test_int8_in_float16_does_not_overflow() -> None:
    """Bytes summed before they are scaled reach 127 * 8 * 4096 = 4.2 million, and float16 ends at 65,504."""
    weight = torch.full((2, 4096), 1e-3)
    y = Int8Linear(weight, torch.float16, CPU)(torch.full((1, 4096), 8.0, dtype=torch.float16))
    torch.testing.assert_close(y, torch.full((1, 2), 32.77, dtype=torch.float16), atol=0, rtol=4e-3)


# Both


@pytest.mark.parametrize("bits", [4, 8])
def test_a_linear_refuses_what_its_kernel_would_misread(bits: int) -> None:
    linear: nn.Module = (
        Int4Linear(random_weight(32, 2, 32, 0), torch.bfloat16, CPU)
        if bits == 4
        else Int8Linear(torch.randn(32, 64), torch.bfloat16, CPU)
    )
    with pytest.raises(AssertionError, match=r"x is \(3, 48\), expected \[tokens, 64\]"):
        linear(torch.zeros(3, 48, dtype=torch.bfloat16))
    with pytest.raises(AssertionError, match=r"expected \[tokens, 64\]"):
        linear(torch.zeros(64, dtype=torch.bfloat16))
    with pytest.raises(AssertionError, match=r"x is torch.float32, expected torch.bfloat16"):
        linear(torch.zeros(3, 64))
