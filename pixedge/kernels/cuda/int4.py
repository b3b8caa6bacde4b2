# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Products of few rows with 4-bit weights on the GPU: y = x @ (scale * (q - zero))^T, summed in float32.

The weight is read once for up to 16 rows of x, in the layout of ``int4_weight``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.int4_weight import Int4Weight, stack, takes, unpack_reference
from pixedge.kernels.cuda.layout import BLOCK_IN, MAX_ROWS

__all__ = ["Int4Weight", "few_rows", "few_rows_reference", "splits_for", "stack", "takes", "unpack_reference"]

DTYPES = (torch.float16, torch.bfloat16)


def few_rows_reference(x: Tensor, weight: Int4Weight) -> Tensor:
    """Return x @ w^T as float32 [rows, out] for x [rows, in]."""
    return x.float() @ unpack_reference(weight, torch.float32).t()


@triton.jit
def _pairs(words, plane: tl.constexpr, HALF: tl.constexpr):
    """Take nibbles ``plane`` and ``plane + 4`` of words [...] as the numbers q + 16, two float types wide.

    The nibble goes to the top of the mantissa of 16.0 (bits 6 to 9 in float16, 3 to 6 in bfloat16).
    """
    shift: tl.constexpr = (3 if tl.bfloat16 == HALF else 6) - 4 * plane
    mask: tl.constexpr = 0x00780078 if tl.bfloat16 == HALF else 0x03C003C0
    sixteen: tl.constexpr = 0x41804180 if tl.bfloat16 == HALF else 0x4C004C00
    placed = words << shift if shift >= 0 else words >> -shift
    placed = (placed & mask) | sixteen
    low = placed.to(tl.int16).to(HALF, bitcast=True)
    high = (placed >> 16).to(tl.int16).to(HALF, bitcast=True)
    return low, high


@triton.jit
def _float16_pairs(words):
    """Take words int32 [n] for pairs of float16: float32 [2n]."""
    low = words.to(tl.int16).to(tl.float16, bitcast=True)
    high = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.interleave(low.to(tl.float32), high.to(tl.float32))


@triton.jit
def _few_rows(
    x,
    words,
    scales,
    zeros,
    order,
    out,
    rows,
    outputs,
    inputs,
    blocks,
    groups,
    blocks_a_split,
    GROUP: tl.constexpr,
    ZEROS: tl.constexpr,
    ORDER: tl.constexpr,
    EVEN: tl.constexpr,
    HALF: tl.constexpr,
    DOT: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write partial sums out[split, row, output] over one split's blocks of inputs."""
    CHUNKS: tl.constexpr = 128 // GROUP if GROUP < 128 else 1  # groups in a block
    PLANES: tl.constexpr = 4 // CHUNKS
    output = tl.program_id(0) * OUT + tl.arange(0, OUT)
    pair = tl.program_id(0) * (OUT // 2) + tl.arange(0, OUT // 2)
    first = tl.program_id(1) * blocks_a_split
    last = tl.minimum(first + blocks_a_split, blocks)
    word = tl.arange(0, 16)
    plane_input = tl.arange(0, 32)
    row = tl.arange(0, ROWS)
    word_at = (output // 16) * (blocks * 256) + (output % 16) * 16
    scale_at = (pair // 8) * (groups * 8) + pair % 8
    # Rows beyond x repeat its rows: their products are not stored, and no load of x needs a mask for them.
    x_at = (row % rows) * inputs
    total = tl.zeros((OUT, ROWS), dtype=tl.float32)
    for block in tl.range(first, last, num_stages=STAGES):
        w = tl.load(words + word_at[:, None] + block * 256 + word[None, :])
        for chunk in tl.static_range(CHUNKS):
            group = block * CHUNKS + chunk if GROUP < 128 else block * 128 // GROUP
            part = tl.zeros((OUT, ROWS), dtype=tl.float32)
            if ZEROS:
                offset = _float16_pairs(tl.load(zeros + scale_at + group * 8)) + 16.0
            for plane in tl.static_range(chunk * PLANES, chunk * PLANES + PLANES):
                low, high = _pairs(w, plane, HALF)
                if tl.float32 == DOT:  # the interpreter has no arithmetic in bfloat16
                    low, high = low.to(tl.float32), high.to(tl.float32)
                if ZEROS:
                    low -= offset.to(DOT)[:, None]
                    high -= offset.to(DOT)[:, None]
                else:
                    low -= 24.0
                    high -= 24.0
                k = block * 128 + 32 * plane + plane_input
                held = k < inputs
                if ORDER:
                    k = tl.load(order + k, mask=held, other=0)
                if EVEN:
                    xs = tl.load(x + x_at[None, :] + k[:, None])
                else:
                    xs = tl.load(x + x_at[None, :] + k[:, None], mask=held[:, None], other=0.0)
                pairs = tl.reshape(tl.join(low, high), (OUT, 32))
                part = tl.dot(pairs, xs.to(DOT), part)
            scale = _float16_pairs(tl.load(scales + scale_at + group * 8))
            total += scale[:, None] * part
    at = (tl.program_id(1) * rows + row[None, :]) * outputs + output[:, None]
    tl.store(out + at, total, mask=(row < rows)[None, :] & (output < outputs)[:, None])


def splits_for(weight: Int4Weight, rows: int) -> int:
    """Return into how many parts ``few_rows`` splits the inputs, so that all multiprocessors have work."""
    return tuning.splits(tuning.device(weight.words.device), weight.out_features, weight.in_features, rows)


def few_rows(x: Tensor, weight: Int4Weight, out: Tensor | None = None, splits: int | None = None) -> Tensor:
    """Multiply x [rows, in], 1 to 16 rows of float16 or bfloat16, with the weight; read each weight once.

    Returns partial sums, float32 [splits, rows, out], which the next kernel adds up in order (``norm``,
    ``activation``, ``rotary`` or ``add_partials`` do): the same sums at every run, without atomics. out:
    where to put them. splits: how many; None asks ``splits_for``.
    """
    rows = len(x)
    splits = splits_for(weight, rows) if splits is None else splits
    if out is None:
        out = torch.empty(splits, rows, weight.out_features, dtype=torch.float32, device=x.device)
    tuning.check_device(x, weight.words, out)
    assert x.ndim == 2 and 1 <= rows <= MAX_ROWS, f"x is {tuple(x.shape)}, expected 1 to {MAX_ROWS} rows"
    assert x.shape[1] == weight.in_features, f"{x.shape[1]} inputs for a weight of {weight.in_features}"
    assert x.dtype in DTYPES and x.is_contiguous(), f"x is {x.dtype}, strides {x.stride()}"
    assert out.dtype == torch.float32 and out.is_contiguous()
    assert out.shape == (splits, rows, weight.out_features), f"out is {tuple(out.shape)}"
    shape = tuning.matmul(tuning.device(x.device), rows)
    half = tl.float16 if x.dtype == torch.float16 else tl.bfloat16
    grid = (-(-weight.out_features // shape.outputs), splits)
    _few_rows[grid](
        x,
        weight.words,
        weight.scales.view(torch.int32),
        None if weight.zeros is None else weight.zeros.view(torch.int32),
        weight.order,
        out,
        rows,
        weight.out_features,
        weight.in_features,
        weight.blocks,
        weight.scales.shape[1],
        -(-weight.blocks // splits),
        GROUP=weight.kernel_group,
        ZEROS=weight.zeros is not None,
        ORDER=weight.order is not None,
        EVEN=weight.in_features % BLOCK_IN == 0,
        HALF=half,
        DOT=tl.float32 if tuning.interpreted() else half,
        OUT=shape.outputs,
        ROWS=8 if rows <= 8 else 16,
        STAGES=shape.stages,
        num_warps=shape.warps,
    )
    return out
