"""The decoder's last norm and output head, twice: as the checkpoint has it, and in 8 bits as it is run."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.decoder import RMSNorm
from pixedge.linear import Int8Linear

_WORDS = 8192
"""Words of a head that exist in float32 at a time, and so the logits."""


class OutputHeads:
    """Map hidden states behind the last layer, float32 [tokens, dim], to logits, some words at a time."""

    def __init__(self, config: DecoderConfig, norm: Tensor, head: Tensor, device: torch.device) -> None:
        """Take the norm's weight [dim] and the head's [vocab, dim], in 16 bits."""
        self._device = device
        self._norm = RMSNorm(config.dim, config.norm_eps)
        self._norm.load_state_dict({"weight": norm.float()})
        self._norm.to(device)
        self._dense = head.to(device)
        self._int8 = Int8Linear(head, torch.float32, device)

    def dense(self, x: Tensor) -> Iterator[Tensor]:
        """Yield logits [tokens, words] with the weights as they are, in float32."""
        normed = self._norm(x.to(self._device))
        for rows in torch.split(self._dense, _WORDS):
            yield normed @ rows.float().t()

    def int8(self, x: Tensor) -> Iterator[Tensor]:
        """Yield logits [tokens, words] as the runtime computes them, in float32."""
        normed = self._norm(x.to(self._device))
        parts = zip(
            torch.split(self._int8.weight, _WORDS), torch.split(self._int8.scales, _WORDS), strict=True
        )
        for weight, scales in parts:
            yield self._int8.kernel.matmul(normed, weight, scales)
