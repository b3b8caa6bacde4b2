"""4-bit products of the GPU kernels against float64, on every shape and grid that may come."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixedge.packing import QuantizedWeight, dequantize

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import int4, sums, tuning, unpacking

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda:0")
DTYPES = (torch.float16, torch.bfloat16)
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
"""What one rounding costs at most, relative; the interpreter cuts bfloat16 off instead of rounding it."""


def random_weight(
    outputs: int, inputs: int, group: int, zeros: bool, seed: int, ordered: bool = False
) -> QuantizedWeight:
    g = torch.Generator().manual_seed(seed)
    shape = (outputs, inputs // group)
    q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=g)
    scales = (1 + torch.rand(shape, generator=g)).half().float() * 2.0 ** torch.randint(
        -9, -3, shape, generator=g
    )
    zero_points = torch.randint(0, 17, shape, dtype=torch.uint8, generator=g) if zeros else None
    order = torch.randperm(inputs, generator=g) if ordered else None
    return QuantizedWeight(q, scales, group, zero_points, order)


def random_x(rows: int, inputs: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed + 1)).to(DEVICE, dtype)


def assert_close(found: Tensor, x: Tensor, weight: Tensor, unit: float) -> None:
    """Compare with x @ weight^T in float64; the bound is of the terms' magnitudes, since a sum may cancel."""
    exact = x.double() @ weight.double().t()
    magnitude = x.double().abs() @ weight.double().abs().t()
    assert found.shape == exact.shape
    excess = ((found.double() - exact).abs() - (unit + 1e-5) * magnitude).max()
    assert excess <= 1e-30, f"beyond the bound by {float(excess):.3g} of {float(magnitude.max()):.3g}"


GRIDS = st.one_of(
    st.tuples(st.sampled_from((32, 64, 128)), st.integers(1, 7)).map(lambda gc: (gc[0], gc[0] * gc[1])),
    st.integers(1, 40).map(lambda words: (8 * words, 8 * words)),  # one group of the whole row
    st.sampled_from([(256, 512), (384, 768)]),
)
"""(group size, inputs)."""


@settings(max_examples=12)
@given(
    st.integers(1, 140), GRIDS, st.booleans(), st.integers(1, 16), st.sampled_from(DTYPES), st.integers(1, 4)
)
@example(96, (128, 640), False, 16, torch.bfloat16, 3)
@example(5, (40, 40), False, 1, torch.float16, 1)
@example(17, (32, 96), True, 9, torch.float16, 1)
def test_few_rows(
    outputs: int, grid: tuple[int, int], zeros: bool, rows: int, dtype: torch.dtype, splits: int
) -> None:
    group, inputs = grid
    quantized = random_weight(
        outputs, inputs, group, zeros, outputs + inputs, ordered=(outputs + inputs) % 3 == 0
    )
    weight = int4.Int4Weight.pack(quantized, DEVICE)
    x = random_x(rows, inputs, dtype, outputs)
    partials = int4.few_rows(x, weight, splits=splits)
    assert partials.shape == (splits, rows, outputs)
    exact = dequantize(quantized, torch.float64).to(DEVICE)
    assert_close(partials.sum(0), x, exact, 0)
    assert_close(int4.few_rows_reference(x, weight), x, exact, 0)


@settings(max_examples=12)
@given(st.integers(1, 140), GRIDS, st.booleans(), st.sampled_from(DTYPES))
def test_unpacking_is_exact(outputs: int, grid: tuple[int, int], zeros: bool, dtype: torch.dtype) -> None:
    """The reference rounds once from float32, as packing.dequantize does; the kernel does the same."""
    group, inputs = grid
    quantized = random_weight(
        outputs, inputs, group, zeros, outputs + inputs, ordered=(outputs + inputs) % 3 == 0
    )
    weight = int4.Int4Weight.pack(quantized, DEVICE)
    expected = dequantize(quantized, dtype).to(DEVICE)
    assert torch.equal(int4.unpack_reference(weight, dtype), expected)
    scratch = torch.full((outputs * inputs + 5,), torch.nan, dtype=dtype, device=DEVICE)
    found = unpacking.unpack(weight, scratch)
    assert bool(scratch[outputs * inputs :].isnan().all()), "written beyond the weight"
    if dtype == torch.float16 or not tuning.interpreted():
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=UNIT[dtype], atol=0)


def test_many_rows_go_through_the_scratch() -> None:
    quantized = random_weight(40, 256, 128, False, 0)
    weight = int4.Int4Weight.pack(quantized, DEVICE)
    x = random_x(33, 256, torch.float16, 0)
    scratch = torch.empty(40 * 256, dtype=x.dtype, device=DEVICE)
    found = unpacking.many_rows(x, weight, scratch)
    torch.testing.assert_close(found, unpacking.many_rows_reference(x, weight), rtol=1e-3, atol=1e-3)


def test_stacked_weights_are_their_parts_side_by_side() -> None:
    """Symmetric beside asymmetric: the product of the stack is the products of the parts."""
    parts = [random_weight(n, 128, 64, zeros, n, ordered=False) for n, zeros in ((40, False), (24, True))]
    stacked = int4.Int4Weight.pack(int4.stack(parts), DEVICE)
    x = random_x(3, 128, torch.float16, 0)
    found = int4.few_rows(x, stacked, splits=1)[0]
    each = [int4.few_rows(x, int4.Int4Weight.pack(part, DEVICE), splits=1)[0] for part in parts]
    # The interpreter's products are NumPy's, whose sums have another order for another shape on some CPUs.
    exact = {"rtol": 0, "atol": 0} if DEVICE.type == "cuda" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, torch.cat(each, dim=-1), **exact)


def test_the_order_of_the_sums_is_fixed() -> None:
    """Splits are summed in order by whoever reads them: twice the same product gives the same bits."""
    weight = int4.Int4Weight.pack(random_weight(64, 1024, 128, False, 1), DEVICE)
    x = random_x(2, 1024, torch.bfloat16, 1)
    assert torch.equal(int4.few_rows(x, weight, splits=4), int4.few_rows(x, weight, splits=4))


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 700), st.booleans(), st.sampled_from(DTYPES))
def test_add_partials(splits: int, rows: int, n: int, residual: bool, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(n)
    partials = torch.randn(splits, rows, n, generator=g).to(DEVICE)
    kept = torch.randn(rows, n, generator=g).to(DEVICE, dtype) if residual else None
    out = torch.full((rows, n), torch.nan, dtype=dtype, device=DEVICE)
    found = sums.add_partials(partials, kept, out)
    expected = sums.add_partials_reference(partials, kept, dtype)
    torch.testing.assert_close(found, expected, rtol=2 * UNIT[dtype], atol=1e-5)


def test_groups_that_the_layout_cannot_hold_are_told() -> None:
    assert not int4.takes(random_weight(16, 96, 48, False, 0))
    assert not int4.takes(random_weight(16, 32, 16, False, 0))
    assert int4.takes(random_weight(16, 96, 96, False, 0))
