"""Products with a weight in 4-bit groups: y = x @ ((q - zero) * scale)^T, where zero is mostly 8.

Kernels read the columns in the order in which the weight holds them, so x must come in that order.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cpu.compiled import library
from pixedge.kernels.cpu.products import Int4Cpu
from pixedge.packing import ZERO_POINT, GptqWeight, QuantizedWeight


class Int4Kernel(Protocol):
    """A layout in memory, and the product that reads it."""

    def repack(
        self, quantized: QuantizedWeight | GptqWeight, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return the weight, its scales and, where the kernel keeps them apart, its zeros for ``matmul``."""
        ...

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        ...


@dataclass(frozen=True)
class Reference:
    """Unpack to the activations' dtype, then an ordinary product: right everywhere, fast nowhere."""

    def repack(
        self, quantized: QuantizedWeight | GptqWeight, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return uint8 [out, in / 2], each even column in a byte's low nibble, and scales [out, groups].

        Where zero points differ from 8, scales are pairs of scale and zero point, [out, groups, 2].
        """
        quantized = unpacked(quantized)
        pairs = quantized.q.to(device)
        scales = quantized.scales.to(device, dtype)
        if quantized.zeros is not None:
            scales = torch.stack([scales, quantized.zeros.to(device, dtype)], dim=-1)
        return pairs[:, 0::2] | (pairs[:, 1::2] << 4), scales

    def dequantize(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return the weight [out, in] in the scales' dtype, its columns as they were given."""
        q = torch.stack([weight & 15, weight >> 4], dim=-1).flatten(-2).to(scales.dtype)
        grouped = q.view(len(q), scales.shape[1], -1)  # [out, groups, group]
        if scales.ndim == 2:
            return ((grouped - ZERO_POINT) * scales[..., None]).view(q.shape)
        scale, zero = scales[..., None].unbind(2)  # [out, groups, 1] each
        return ((grouped - zero) * scale).view(q.shape)

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        return functional.linear(x, self.dequantize(weight, scales))


@dataclass(frozen=True)
class TorchCpu:
    """torch's own 4-bit product for the CPU, which reads the packed weight once; bfloat16 activations only.

    In any other dtype the same operator falls back to a loop that is hundreds of times slower. It takes
    outputs in blocks of 16 and groups of 32, 64, 128 or 256 inputs; a larger group is split, and its scale
    repeated.

    The operator computes (q - 8) * scale + zero from bfloat16 pairs of scale and zero, summed in float32. So
    a scale that bfloat16 does not hold is rounded, by at most 1/256 of its value, as the activations are. The
    second number is (8 - zero point) * scale, taken from the rounded scale and rounded again: that moves a
    group's weights by at most 7/256 of a scale, where the 4-bit grid itself moved each by up to 1/2.
    """

    def repack(
        self, quantized: QuantizedWeight | GptqWeight, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the operator's packed weight and [groups, out, 2] pairs of scale and zero."""
        quantized = unpacked(quantized)
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.q.to(torch.int32), 1)
        scales = quantized.scales.t().to(dtype)  # [groups, out]
        zeros = torch.zeros_like(scales)
        if quantized.zeros is not None:
            zeros = ((ZERO_POINT - quantized.zeros.t().float()) * scales.float()).to(dtype)
        pairs = torch.stack([scales, zeros], dim=-1)
        group = _largest_group(quantized.group_size)
        assert group is not None, f"groups of {quantized.group_size} do not split into any that torch takes"
        return weight, pairs.repeat_interleave(quantized.group_size // group, dim=0).contiguous()

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        group_size = x.shape[1] // scales.shape[0]
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), weight, group_size, scales)
        return out


def choose(dtype: torch.dtype, device: torch.device, out_features: int, group_size: int) -> Int4Kernel:
    """Return the fastest kernel for activations of ``dtype`` on ``device`` that takes the weight's shape."""
    if device.type != "cpu" or dtype != torch.bfloat16 or out_features % 16:
        return Reference()
    if group_size % 8 == 0 and library() is not None:
        return Int4Cpu()
    return Reference() if _largest_group(group_size) is None else TorchCpu()


def unpacked(weight: QuantizedWeight | GptqWeight) -> QuantizedWeight:
    """Return the weight with a byte for each value."""
    return weight.unpacked() if isinstance(weight, GptqWeight) else weight


def _largest_group(group_size: int) -> int | None:
    """Return the largest group that torch's operator takes and that divides ``group_size``."""
    return next((size for size in (256, 128, 64, 32) if group_size % size == 0), None)
