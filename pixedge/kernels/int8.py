"""Products with a weight in signed bytes and one scale a row: y = x @ (q * scale)^T."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cpu.compiled import library
from pixedge.kernels.cpu.products import Int8Cpu


class Int8Kernel(Protocol):
    """A layout in memory, and the product that reads it."""

    def repack(self, weight: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Round weight [out, in]; return it and its scales [out] as ``matmul`` wants them."""
        ...

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        ...


def quantize_rows(weight: Tensor, rows_at_once: int = 4096) -> tuple[Tensor, Tensor]:
    """Round weight [out, in] to signed bytes: q = round(w / scale), scale = max|w| / 127 of each row.

    Return q int8 [out, in] and scales bfloat16 [out]; each scale is rounded to bfloat16 before the row is
    divided by it, so every product sees the same weight, within half a scale of the original. Works through a
    few rows at a time, so that a head of 131,072 rows never exists in float32. The result is where weight is.
    """
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.bfloat16, device=weight.device)
    for start in range(0, weight.shape[0], rows_at_once):
        rows = weight[start : start + rows_at_once].float()
        # a row of zeros, or nearly so, must not divide by 0
        scale = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny).to(torch.bfloat16)
        q[start : start + rows_at_once] = (
            (rows / scale[:, None].float()).round().clamp(-127, 127).to(torch.int8)
        )
        scales[start : start + rows_at_once] = scale
    return q, scales


@dataclass(frozen=True)
class Reference:
    """Widen to x's dtype, then an ordinary product, some rows at a time so that the widened head stays small.

    The scale goes in before the product: sums of bare bytes would overflow float16.
    """

    rows_at_once: int = 4096

    def repack(self, weight: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return int8 [out, in] and scales bfloat16 [out] of ``quantize_rows``."""
        q, scales = quantize_rows(weight)
        return q.to(device), scales.to(device)

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        parts = [
            functional.linear(x, (rows * scale[:, None].float()).to(x.dtype))
            for rows, scale in zip(
                torch.split(weight, self.rows_at_once), torch.split(scales, self.rows_at_once), strict=True
            )
        ]
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class TorchCpu:
    """torch's own 8-bit product for the CPU, for bfloat16 activations and inputs in whole vectors of 16.

    Other dtypes are far slower, and other widths are read and summed past the end of a row.
    """

    def repack(self, weight: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return int8 [out, in] and scales bfloat16 [out] of ``quantize_rows``."""
        q, scales = quantize_rows(weight)
        return q.to(device), scales.to(device)

    def matmul(self, x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out] in x's dtype."""
        out: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), weight, scales)
        return out


def choose(dtype: torch.dtype, device: torch.device, in_features: int) -> Int8Kernel:
    """Return the fastest kernel for activations [tokens, in_features] of ``dtype`` on ``device``."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return Reference()
    if in_features % 8 == 0 and library() is not None:
        return Int8Cpu()
    return Reference() if in_features % 16 else TorchCpu()
