# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Products of many rows with 4-bit weights: unpack the weight into a scratch buffer, then torch's product.

From a few dozen rows on the arithmetic takes longer than reading the weight, so cuBLAS is worth the detour:
the scratch is written and read once, whatever the number of rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.int4 import (
    DTYPES,
    Int4Weight,
    _float16_pairs,
    _pairs,
    unpack_reference,
)

OUTPUTS = 64
"""Outputs a program unpacks, by one block of inputs."""


def many_rows_reference(x: Tensor, weight: Int4Weight) -> Tensor:
    """Return x @ w^T in x's dtype for x [rows, in], the weight rounded to that dtype first."""
    return functional.linear(x, unpack_reference(weight, x.dtype))


@triton.jit
def _unpack(
    words,
    scales,
    zeros,
    order,
    out,
    outputs,
    inputs,
    blocks,
    groups,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    ORDER: tl.constexpr,
    HALF: tl.constexpr,
    OUT: tl.constexpr,
):
    """Write out[output, input] for OUT outputs and one block of inputs."""
    CHUNKS: tl.constexpr = 128 // GROUP if GROUP < 128 else 1
    block = tl.program_id(0)
    output = tl.program_id(1) * OUT + tl.arange(0, OUT)
    pair = tl.program_id(1) * (OUT // 2) + tl.arange(0, OUT // 2)
    word_at = (output // 16) * (blocks * 256) + (output % 16) * 16
    scale_at = (pair // 8) * (groups * 8) + pair % 8
    w = tl.load(words + word_at[:, None] + block * 256 + tl.arange(0, 16)[None, :])
    for plane in tl.static_range(4):
        group = block * CHUNKS + plane * CHUNKS // 4 if GROUP < 128 else block * 128 // GROUP
        low, high = _pairs(w, plane, HALF)
        q = tl.reshape(tl.join(low.to(tl.float32), high.to(tl.float32)), (OUT, 32))
        scale = _float16_pairs(tl.load(scales + scale_at + group * 8))
        if ZEROS:
            offset = _float16_pairs(tl.load(zeros + scale_at + group * 8)) + 16.0
            dense = (q - offset[:, None]) * scale[:, None]
        else:
            dense = (q - 24.0) * scale[:, None]
        k = block * 128 + 32 * plane + tl.arange(0, 32)
        held = k < inputs
        if ORDER:
            k = tl.load(order + k, mask=held, other=0)
        at = output.to(tl.int64)[:, None] * inputs + k[None, :]
        tl.store(out + at, dense.to(HALF), mask=(output < outputs)[:, None] & held[None, :])


def unpack(weight: Int4Weight, out: Tensor) -> Tensor:
    """Unpack a weight into the front of ``out``, flat float16 or bfloat16; return that part as [out, in].

    Inputs come out in their natural order.
    """
    outputs, inputs = weight.out_features, weight.in_features
    tuning.check_device(weight.words, out)
    assert out.dtype in DTYPES and out.ndim == 1 and out.is_contiguous(), f"out is {out.dtype} {out.ndim}-D"
    assert out.numel() >= outputs * inputs, f"{out.numel()} elements for a weight of {outputs * inputs}"
    _unpack[(weight.blocks, -(-outputs // OUTPUTS))](
        weight.words,
        weight.scales.view(torch.int32),
        None if weight.zeros is None else weight.zeros.view(torch.int32),
        weight.order,
        out,
        outputs,
        inputs,
        weight.blocks,
        weight.scales.shape[1],
        GROUP=weight.kernel_group,
        ZEROS=weight.zeros is not None,
        ORDER=weight.order is not None,
        HALF=tl.float16 if out.dtype == torch.float16 else tl.bfloat16,
        OUT=OUTPUTS,
        num_warps=4,
    )
    return out[: outputs * inputs].view(outputs, inputs)


def many_rows(x: Tensor, weight: Int4Weight, scratch: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply x [rows, in] of float16 or bfloat16 with the weight, in x's dtype: [rows, out].

    scratch: flat, of x's dtype, at least out * in elements; overwritten.
    """
    assert x.ndim == 2 and x.shape[1] == weight.in_features, f"x is {tuple(x.shape)}"
    assert scratch.dtype == x.dtype, f"scratch of {scratch.dtype} for x of {x.dtype}"
    dense = unpack(weight, scratch)
    return torch.mm(x, dense.t(), out=out) if out is not None else torch.mm(x, dense.t())
