# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Products with 4-bit weights on the GPU: y = x @ (scale * (q - zero))^T, summed in float32.

The weight is read once for up to 16 rows of x, in a layout made for that: blocks of 16 outputs by 128 inputs
are 1 KB in one piece, so that threads load 16 bytes each and a program reads straight on through memory. A
word holds 8 inputs of one output. Its nibble j and nibble j + 4 are the neighbouring inputs 32j + 2i and
32j + 2i + 1 of word i: one shift, mask and subtraction make both of them numbers that lie in one register as
the tensor cores want them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cuda import tuning
from pixedge.packing import ZERO_POINT, QuantizedWeight

BLOCK_OUT = 16
BLOCK_IN = 128
WORDS = BLOCK_IN // 8
PADDED_OUT = 128
"""Outputs are filled up to a multiple of this, so that no load of weights needs a mask."""
MAX_ROWS = 16
"""The most rows of x that a product of few rows takes."""

DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Int4Weight:
    """A weight [out, in] in blocks; made by ``pack``.

    words: int32 [out / 16, in / 128, 16, 16], the last two being output and word. scales: float16 [out / 16,
    groups, 16]. zeros: float16 like scales, or None for 8 everywhere. order: int32 [in], the input that each
    column multiplies, or None where they are in order. Outputs and inputs beyond the weight's own are filled
    with zeros of scale 0.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None
    out_features: int
    in_features: int
    group_size: int

    @classmethod
    def pack(cls, quantized: QuantizedWeight, device: torch.device) -> Self:
        """Lay a weight out whose group size ``takes`` accepts; scales must be exact in float16."""
        assert takes(quantized), f"groups of {quantized.group_size} in {quantized.in_features} inputs"
        out_features, in_features, group = quantized.out_features, quantized.in_features, quantized.group_size
        outs = -(-out_features // PADDED_OUT) * PADDED_OUT
        blocks = -(-in_features // BLOCK_IN)
        groups = blocks * BLOCK_IN // group if group in (32, 64) else quantized.scales.shape[1]
        q = quantized.q.to(device)
        padding = (0, blocks * BLOCK_IN - in_features, 0, outs - out_features)
        q = functional.pad(q, padding, value=ZERO_POINT)
        # [out / 16, 16, blocks, plane j, word i, half h], input 32j + 2i + h of its block
        q = q.view(outs // BLOCK_OUT, BLOCK_OUT, blocks, 4, WORDS, 2).permute(0, 2, 1, 4, 5, 3)
        words = torch.zeros(q.shape[:4], dtype=torch.int32, device=device)
        for half in range(2):
            for plane in range(4):
                words |= q[..., half, plane].to(torch.int32) << (16 * half + 4 * plane)

        def blocked(values: Tensor) -> Tensor:
            values = values.to(device, torch.float16)
            values = functional.pad(values, (0, groups - values.shape[1], 0, outs - out_features))
            values = values.view(-1, BLOCK_OUT, groups).transpose(1, 2)
            # not contiguous(): of one group that leaves strides as they are, and pairs cannot be viewed
            return torch.empty(values.shape, dtype=values.dtype, device=device).copy_(values)

        scales = blocked(quantized.scales)
        zeros = None if quantized.zeros is None else blocked(quantized.zeros)
        order = None if quantized.order is None else quantized.order.to(device, torch.int32)
        return cls(words, scales, zeros, order, out_features, in_features, group)

    @property
    def kernel_group(self) -> int:
        """The group size as the kernels use it: a single group shorter than a block counts as a block."""
        return self.group_size if self.group_size in (32, 64) else max(BLOCK_IN, self.group_size)

    @property
    def blocks(self) -> int:
        """How many blocks of 128 inputs there are."""
        return self.words.shape[1]


def takes(quantized: QuantizedWeight) -> bool:
    """Tell whether the layout holds a weight: groups of 32, 64, a multiple of 128 inputs, or one group."""
    group = quantized.group_size
    return group in (32, 64) or group % BLOCK_IN == 0 or group == quantized.in_features


def stack(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Stack weights of the same inputs by outputs, so that one product serves them all.

    Their group sizes and orders of columns must be the same.
    """
    first = parts[0]
    assert all(part.group_size == first.group_size for part in parts), "group sizes differ"
    for part in parts:
        same = part.order is first.order or (
            part.order is not None and first.order is not None and torch.equal(part.order, first.order)
        )
        assert same, "orders of columns differ"
    zeros = None
    if any(part.zeros is not None for part in parts):
        filled = [
            torch.full(part.scales.shape, ZERO_POINT, dtype=torch.uint8) if part.zeros is None else part.zeros
            for part in parts
        ]
        zeros = torch.cat(filled)
    q, scales = torch.cat([part.q for part in parts]), torch.cat([part.scales for part in parts])
    return QuantizedWeight(q, scales, first.group_size, zeros, first.order)


def unpack_reference(weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """Return scale * (q - zero), formed in float32 and rounded once, as [out, in]."""
    nibbles = [(weight.words >> shift) & 15 for shift in range(0, 32, 4)]
    halves = torch.stack([torch.stack(nibbles[:4]), torch.stack(nibbles[4:])], dim=-1)
    q = halves.permute(1, 3, 2, 0, 4, 5).flatten(2).flatten(0, 1).float()  # [outs, in]
    group = (torch.arange(q.shape[1], device=q.device) // weight.group_size).clamp(
        max=weight.scales.shape[1] - 1
    )

    def spread(values: Tensor) -> Tensor:
        return values.transpose(1, 2).flatten(0, 1).float()[:, group]  # [outs, in]

    zeros = ZERO_POINT if weight.zeros is None else spread(weight.zeros)
    dense = ((q - zeros) * spread(weight.scales))[: weight.out_features, : weight.in_features].to(dtype)
    if weight.order is None:
        return dense
    return torch.empty_like(dense).index_copy_(1, weight.order.long(), dense)


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
    shape = _shape(weight.words.device, rows)
    tiles = -(-weight.out_features // shape.outputs)
    wanted = tuning.device(weight.words.device).multiprocessors * shape.programs
    # at least two blocks a split, or filling the pipeline takes longer than the work
    return max(1, min(wanted // tiles, shape.splits, weight.blocks // 2))


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
    shape = _shape(x.device, rows)
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


def _shape(device: torch.device, rows: int) -> tuning.Matmul:
    shapes = tuning.device(device).shapes
    return shapes.int4 if rows <= 8 else shapes.int4_wide
