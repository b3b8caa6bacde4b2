"""Linears behind one interface: float [tokens, in] -> [tokens, out], whatever the weight is stored as.

    nn.Linear      16- or 32-bit weight; what a checkpoint holds
    Int4Linear     4-bit groups on the GPTQ grid; the decoder's projections
    Int8Linear     8-bit rows; the output head, rounded while loading

The products themselves are in ``pixedge.kernels``, which picks the fastest one for the device and dtype.
"""

import torch
from torch import Tensor, nn

from pixedge.kernels import int4, int8
from pixedge.packing import GptqWeight, QuantizedWeight


class Int4Linear(nn.Module):
    """A weight [out, in] in 4-bit groups; where the groups are not runs of inputs, x is reordered first."""

    weight: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None

    def __init__(
        self, quantized: QuantizedWeight | GptqWeight, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Repack once for the kernel that serves activations of ``dtype`` on ``device``."""
        super().__init__()
        self.in_features, self.dtype = quantized.in_features, dtype
        self.kernel = int4.choose(dtype, device, quantized.out_features, quantized.group_size)
        weight, scales, *zeros = self.kernel.repack(quantized, dtype, device)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros[0] if zeros else None)
        self.register_buffer("order", None if quantized.order is None else quantized.order.to(device))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out]."""
        _check(x, self.in_features, self.dtype)
        if self.order is not None:
            x = x.index_select(-1, self.order)
        return self.kernel.matmul(x, self.weight, self.scales, self.zeros)


class Int8Linear(nn.Module):
    """A weight [out, in] as signed bytes with one scale a row, made from a 16-bit weight while loading."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """Round weight [out, in] to 8 bits, for activations of ``dtype`` on ``device``."""
        super().__init__()
        self.in_features, self.dtype = weight.shape[1], dtype
        self.kernel = int8.choose(dtype, device, self.in_features)
        packed, scales = self.kernel.repack(weight, device)
        self.register_buffer("weight", packed)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [tokens, in] to [tokens, out]."""
        _check(x, self.in_features, self.dtype)
        return self.kernel.matmul(x, self.weight, self.scales)


def _check(x: Tensor, in_features: int, dtype: torch.dtype) -> None:
    """Assert what the kernels rely on: some of them read past a row that is too short."""
    assert x.ndim == 2 and x.shape[1] == in_features, (
        f"x is {tuple(x.shape)}, expected [tokens, {in_features}]"
    )
    assert x.dtype == dtype, f"x is {x.dtype}, expected {dtype}"
