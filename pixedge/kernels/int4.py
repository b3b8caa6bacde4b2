"""Products with a weight in 4-bit groups, symmetric around 8: y = x @ ((q - 8) * scale)^T."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pixedge.packing import QuantizedWeight


class Int4Kernel(Protocol):
    """A layout in memory, and the product that reads it."""

    def repack(
        self, quantized: QuantizedWeight, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the weight and its scales as ``matmul`` wants them."""
        ...

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        ...


@dataclass(frozen=True)
class Reference:
    """Unpack to the activations' dtype, then an ordinary product: right everywhere, fast nowhere."""

    def repack(
        self, quantized: QuantizedWeight, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return uint8 [out, in / 2], each even input in a byte's low nibble, and scales [out, groups]."""
        pairs = quantized.q.to(device)
        return pairs[:, 0::2] | (pairs[:, 1::2] << 4), quantized.scales.to(device, dtype)

    def dequantize(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return the weight [out, in] in the scales' dtype."""
        q = torch.stack([weight & 15, weight >> 4], dim=-1).flatten(-2).to(scales.dtype) - 8
        grouped = q.view(len(q), scales.shape[1], -1)  # [out, groups, group]
        return (grouped * scales[..., None]).view(q.shape)

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        return functional.linear(x, self.dequantize(weight, scales))


@dataclass(frozen=True)
class TorchCpu:
    """torch's own 4-bit product for the CPU, which reads the packed weight once; bfloat16 activations only.

    In any other dtype the same operator falls back to a loop that is hundreds of times slower. It takes
    outputs in blocks of 16 and groups of 32, 64, 128 or 256 inputs.
    """

    def repack(
        self, quantized: QuantizedWeight, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the operator's packed weight and [groups, out, 2] pairs of scale and zero."""
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.q.to(torch.int32), 1)
        scales = quantized.scales.t().to(dtype)
        return weight, torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        group_size = x.shape[1] // scales.shape[0]
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), weight, group_size, scales)
        return out


def choose(dtype: torch.dtype, device: torch.device, out_features: int, group_size: int) -> Int4Kernel:
    """Return the fastest kernel for activations of ``dtype`` on ``device`` that takes the weight's shape."""
    fits = out_features % 16 == 0 and group_size in (32, 64, 128, 256)
    return TorchCpu() if device.type == "cpu" and dtype == torch.bfloat16 and fits else Reference()
