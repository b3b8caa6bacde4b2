"""The 8-bit head of the GPU kernels against float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pixedge.kernels.int8 import quantize_rows

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import int8, tuning

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda:0")


@settings(max_examples=20)
@given(
    st.integers(1, 200),
    st.integers(1, 300),
    st.integers(1, 16),
    st.sampled_from((torch.float16, torch.bfloat16)),
)
@example(64, 256, 1, torch.bfloat16)
@example(65, 129, 9, torch.float16)
def test_head(outputs: int, inputs: int, rows: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(outputs)
    weight, scales = (each.to(DEVICE) for each in quantize_rows(torch.randn(outputs, inputs, generator=g)))
    x = torch.randn(rows, inputs, generator=g).to(DEVICE, dtype)
    exact = x.double() @ (weight.double() * scales.double()[:, None]).t()
    bound = 1e-5 * (x.double().abs() @ (weight.double().abs() * scales.double()[:, None]).t()) + 1e-30
    for found in (int8.head(x, weight, scales), int8.head_reference(x, weight, scales)):
        assert found.shape == (rows, outputs) and found.dtype == torch.float32
        assert bool(((found - exact).abs() <= bound).all())


def test_sums_of_bytes_do_not_overflow() -> None:
    """127 * 127 * 300 is 74 times float16's largest number; only the scaled sum has to fit."""
    weight = torch.full((3, 300), 127, dtype=torch.int8, device=DEVICE)
    scales = torch.full((3,), 2.0**-14, dtype=torch.bfloat16, device=DEVICE)
    x = torch.full((1, 300), 127.0, dtype=torch.float16, device=DEVICE)
    assert torch.equal(
        int8.head(x, weight, scales), torch.full((1, 3), 127 * 127 * 300 * 2.0**-14, device=DEVICE)
    )
