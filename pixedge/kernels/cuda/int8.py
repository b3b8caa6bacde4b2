# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The output head on the GPU: signed bytes with one scale a row, for 1 to 16 rows of x.

The layout is that of ``pixedge.kernels.int8.quantize_rows``: rows of bytes are read in whole lines as they
are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.int4 import DTYPES
from pixedge.kernels.cuda.layout import MAX_ROWS

INPUTS = 128
"""Inputs a program takes at a time."""


def head_reference(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """Return x @ (weight * scale)^T as float32 [rows, out]."""
    return x.float() @ (weight.float() * scales.float()[:, None]).t()


@triton.jit
def _head(
    x,
    weight,
    scales,
    out,
    rows,
    outputs,
    inputs,
    EVEN: tl.constexpr,
    HALF: tl.constexpr,
    OUT: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    output = tl.program_id(0) * OUT + tl.arange(0, OUT)
    row = tl.arange(0, ROWS)
    inside = output < outputs
    # Outputs beyond the weight repeat its last one: only the store needs a mask.
    weight_at = tl.minimum(output, outputs - 1).to(tl.int64) * inputs
    x_at = (row % rows) * inputs
    total = tl.zeros((OUT, ROWS), dtype=tl.float32)
    for start in tl.range(0, inputs, INPUTS, num_stages=STAGES):
        k = start + tl.arange(0, INPUTS)
        if EVEN:
            w = tl.load(weight + weight_at[:, None] + k[None, :])
            xs = tl.load(x + x_at[None, :] + k[:, None])
        else:
            w = tl.load(weight + weight_at[:, None] + k[None, :], mask=(k < inputs)[None, :], other=0)
            xs = tl.load(x + x_at[None, :] + k[:, None], mask=(k < inputs)[:, None], other=0.0)
        total = tl.dot(w.to(HALF), xs.to(HALF), total)
    scale = tl.load(scales + output, mask=inside, other=0.0).to(tl.float32)
    at = row[None, :] * outputs + output[:, None]
    tl.store(out + at, total * scale[:, None], mask=(row < rows)[None, :] & inside[:, None])


def head(x: Tensor, weight: Tensor, scales: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply x [rows, in], 1 to 16 rows of float16 or bfloat16, with weight int8 [out, in].

    scales: bfloat16 [out]. Returns float32 logits [rows, out], in ``out`` where it is given. Bytes are exact
    in either 16-bit type and the scale goes in behind the float32 sum, so nothing overflows.
    """
    rows, (outputs, inputs) = len(x), weight.shape
    if out is None:
        out = torch.empty(rows, outputs, dtype=torch.float32, device=x.device)
    tuning.check_device(x, weight, scales, out)
    assert x.ndim == 2 and 1 <= rows <= MAX_ROWS and x.shape[1] == inputs, f"x is {tuple(x.shape)}"
    assert x.dtype in DTYPES and x.is_contiguous() and weight.is_contiguous() and out.is_contiguous()
    assert weight.dtype == torch.int8 and scales.shape == (outputs,), f"{weight.dtype}, {tuple(scales.shape)}"
    assert out.dtype == torch.float32 and out.shape == (rows, outputs), f"out is {tuple(out.shape)}"
    shape = tuning.device(x.device).shapes.int8
    half = tl.float16 if x.dtype == torch.float16 else tl.bfloat16
    _head[(-(-outputs // shape.outputs),)](
        x,
        weight,
        scales,
        out,
        rows,
        outputs,
        inputs,
        EVEN=inputs % INPUTS == 0,
        HALF=tl.float32 if tuning.interpreted() else half,
        OUT=shape.outputs,
        INPUTS=INPUTS,
        ROWS=8 if rows <= 8 else 16,
        STAGES=shape.stages,
        num_warps=shape.warps,
    )
    return out
