"""Products of bfloat16 activations with packed weights, in C; the layouts are described in kernels.h.

Few rows read the packed weight once for all of them, with activations rounded to 8 bits: one scale for every
128 inputs (fewer where the weight's groups are smaller). With s the scale of an activation's group, a term
w * x is off by at most |w| * s / 2, and s is the group's largest |x| over 127. Many rows go to a product in
bfloat16 where the CPU has matrix tiles; elsewhere passes in 8 bits remain faster than any product of floats,
but for plain C, which is slower than unpacking the weight for torch.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cpu.compiled import Int4Weight, Int8Weight, aligned_empty, library, pointer, variant
from pixedge.kernels.cpu.many_rows import int4_many_rows
from pixedge.packing import GptqWeight, QuantizedWeight

BLOCK = 16
"""Outputs that lie side by side."""

MOST_ROWS = 16
"""Rows that one pass over the weights serves."""


@dataclass(frozen=True)
class Int4Cpu:
    """Weights in lines of 8 inputs of 16 outputs; takes outputs in blocks of 16 and groups in eights."""

    def repack(
        self, quantized: QuantizedWeight | GptqWeight, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return lines uint8 [out / 16, in / 8, 64], scales float16 [out / 16, groups, 16], and any zeros.

        Scales are rounded to float16, in which files hold them anyway. zeros are uint8, shaped like scales.
        """
        assert dtype == torch.bfloat16 and device.type == "cpu"
        if isinstance(quantized, GptqWeight) and quantized.order is not None:
            quantized = quantized.unpacked()
        opened = library()
        if isinstance(quantized, GptqWeight) and opened is not None:
            lines = _empty_lines(quantized.out_features, quantized.in_features)
            words = quantized.words.contiguous()
            opened.pixedge_int4_repack(
                pointer(words), quantized.in_features, quantized.out_features, pointer(lines)
            )
            scales, zeros = quantized.scales, quantized.zeros  # [groups, out]
        else:
            plain = quantized.unpacked() if isinstance(quantized, GptqWeight) else quantized
            lines = _empty_lines(plain.out_features, plain.in_features)
            lines.copy_(pack_lines(plain.q))
            scales, zeros = plain.scales.t(), None if plain.zeros is None else plain.zeros.t()
        halves = scales if scales.dtype == torch.float16 else scales.float().half()
        assert bool(halves.isfinite().all()), "a scale is beyond float16"
        return (lines, _by_blocks(halves), *(() if zeros is None else (_by_blocks(zeros),)))

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Map x bfloat16 [tokens, in] to [tokens, out]."""
        assert x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.ndim == 2
        opened = library()
        if opened is None:  # packed with the library, asked without it
            return functional.linear(x, dequantize_lines(weight, scales, zeros).to(x.dtype))
        x, packed = x.contiguous(), int4_weight(weight, scales, zeros)
        assert x.shape[1] == packed.inputs
        if len(x) > MOST_ROWS and (many := int4_many_rows(x, packed)) is not None:
            return many
        y = torch.empty(len(x), packed.outputs, dtype=x.dtype)
        if len(x) > MOST_ROWS and variant() == "c":
            dense = torch.empty(packed.outputs, packed.inputs, dtype=x.dtype)
            opened.pixedge_int4_unpack(ctypes.byref(packed), pointer(dense))
            return functional.linear(x, dense)
        if opened.pixedge_int4_few_rows(ctypes.byref(packed), pointer(x), len(x), pointer(y)):
            raise MemoryError("no memory for a product's activations")
        return y


@dataclass(frozen=True)
class Int8Cpu:
    """Weights in lines of 4 inputs of 16 outputs; takes inputs in eights."""

    def repack(self, weight: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Round weight [out, in] as ``int8.quantize_rows`` does.

        Return lines uint8 [ceil(out / 16), in / 4, 64] of q + 128, and scales float32 [out], whose memory
        goes on to the end of the last block.
        """
        assert device.type == "cpu"
        outputs, inputs = weight.shape
        blocks = -(-outputs // BLOCK)
        lines = aligned_empty((blocks, inputs // 4, 4 * BLOCK), torch.uint8)
        scales = torch.zeros(blocks * BLOCK)
        opened = library()
        if opened is not None and weight.dtype in (torch.bfloat16, torch.float16):
            half = int(weight.dtype == torch.float16)
            rows = weight.contiguous()
            opened.pixedge_int8_round(pointer(rows), half, inputs, outputs, pointer(lines), pointer(scales))
        else:
            from pixedge.kernels.int8 import quantize_rows

            q, scale = quantize_rows(weight)
            lines.copy_(pack_byte_lines(q))
            scales[:outputs] = scale.float()
        return lines, scales[:outputs]

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        """Map x bfloat16 [tokens, in] to [tokens, out]."""
        assert x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.ndim == 2
        packed = int8_weight(weight, scales)
        assert x.shape[1] == packed.inputs
        opened = library()
        if opened is None:
            return functional.linear(x, dequantize_byte_lines(weight, scales).to(x.dtype))
        x = x.contiguous()
        y = torch.empty(len(x), packed.outputs, dtype=x.dtype)
        if opened.pixedge_int8_few_rows(ctypes.byref(packed), pointer(x), len(x), pointer(y)):
            raise MemoryError("no memory for a product's activations")
        return y


def int4_weight(lines: Tensor, scales: Tensor, zeros: Tensor | None) -> Int4Weight:
    """Describe a packed weight to the library, after checking what it relies on."""
    blocks, octets, width = lines.shape
    groups = scales.shape[1]
    assert lines.dtype == torch.uint8 and width == 4 * BLOCK and lines.data_ptr() % 64 == 0
    assert scales.dtype == torch.float16 and scales.shape == (blocks, groups, BLOCK)
    assert zeros is None or (zeros.dtype == torch.uint8 and zeros.shape == scales.shape)
    assert groups > 0 and octets % groups == 0, f"{8 * octets} inputs in {groups} groups"
    return Int4Weight(
        pointer(lines),
        pointer(scales),
        pointer(zeros),
        BLOCK * blocks,
        8 * octets,
        8 * octets // groups,
    )


def int8_weight(lines: Tensor, scales: Tensor) -> Int8Weight:
    """Describe a packed weight to the library, after checking what it relies on."""
    blocks, quads, width = lines.shape
    assert lines.dtype == torch.uint8 and width == 4 * BLOCK and lines.data_ptr() % 64 == 0
    assert quads % 2 == 0 and quads > 0, f"{4 * quads} inputs"
    assert scales.dtype == torch.float32 and -(-len(scales) // BLOCK) == blocks
    assert scales.untyped_storage().nbytes() >= 4 * BLOCK * blocks, "scales end inside the last block"
    return Int8Weight(pointer(lines), pointer(scales), len(scales), 4 * quads)


def pack_lines(q: Tensor) -> Tensor:
    """Lay values uint8 [out, in] of 0 to 15 out as lines uint8 [out / 16, in / 8, 64].

    Byte 4 r + j of line l has input 8 l + j of output r in its low nibble and 8 l + 4 + j in the high one.
    """
    parts = q.view(q.shape[0] // BLOCK, BLOCK, q.shape[1] // 8, 2, 4)
    both = parts[:, :, :, 0] | (parts[:, :, :, 1] << 4)  # [blocks, 16, octets, 4]
    return both.transpose(1, 2).reshape(q.shape[0] // BLOCK, q.shape[1] // 8, 4 * BLOCK)


def unpack_lines(lines: Tensor) -> Tensor:
    """Undo pack_lines: uint8 [out / 16, in / 8, 64] to uint8 [out, in]."""
    blocks, octets, _ = lines.shape
    parts = lines.view(blocks, octets, BLOCK, 4).transpose(1, 2)  # [blocks, 16, octets, 4]
    return torch.stack([parts & 15, parts >> 4], dim=3).reshape(blocks * BLOCK, octets * 8)


def dequantize_lines(lines: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Return the packed weight as float32 [out, in]."""
    blocks, groups, _ = scales.shape
    q = unpack_lines(lines).view(blocks, BLOCK, groups, -1).float()
    zero = 8.0 if zeros is None else zeros.transpose(1, 2)[..., None].float()
    return ((q - zero) * scales.transpose(1, 2)[..., None].float()).view(blocks * BLOCK, -1)


def pack_byte_lines(q: Tensor) -> Tensor:
    """Lay values int8 [out, in] out as lines uint8 [ceil(out / 16), in / 4, 64] of q + 128."""
    blocks = -(-q.shape[0] // BLOCK)
    padded = functional.pad(q, (0, 0, 0, blocks * BLOCK - q.shape[0]))
    bytes_ = (padded.to(torch.int16) + 128).to(torch.uint8).view(blocks, BLOCK, q.shape[1] // 4, 4)
    return bytes_.transpose(1, 2).reshape(blocks, q.shape[1] // 4, 4 * BLOCK)


def unpack_byte_lines(lines: Tensor, outputs: int) -> Tensor:
    """Undo pack_byte_lines: uint8 [ceil(out / 16), in / 4, 64] to int8 [out, in]."""
    blocks, quads, _ = lines.shape
    rows = lines.view(blocks, quads, BLOCK, 4).transpose(1, 2).reshape(blocks * BLOCK, quads * 4)
    return (rows.to(torch.int16) - 128).to(torch.int8)[:outputs]


def dequantize_byte_lines(lines: Tensor, scales: Tensor) -> Tensor:
    """Return the packed weight as float32 [out, in]."""
    return unpack_byte_lines(lines, len(scales)).float() * scales[:, None]


def _empty_lines(outputs: int, inputs: int) -> Tensor:
    return aligned_empty((outputs // BLOCK, inputs // 8, 4 * BLOCK), torch.uint8)


def _by_blocks(x: Tensor) -> Tensor:
    """Turn [groups, out] into [out / 16, groups, 16]."""
    return x.reshape(x.shape[0], -1, BLOCK).transpose(0, 1).contiguous()
