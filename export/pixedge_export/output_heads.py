"""The decoder's last norm and output head, twice: as the checkpoint has it, and in 8 bits as it is run."""

import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.decoder import RMSNorm
from pixedge.linear import Int8Linear

_ROWS = 8192
"""Rows of the dense head that exist in float32 at a time."""


class OutputHeads:
    """Both map hidden states behind the last layer, float32 [tokens, dim], to logits [tokens, vocab]."""

    def __init__(self, config: DecoderConfig, norm: Tensor, head: Tensor, device: torch.device) -> None:
        """Take the norm's weight [dim] and the head's [vocab, dim], in 16 bits."""
        self._device = device
        self._norm = RMSNorm(config.dim, config.norm_eps)
        self._norm.load_state_dict({"weight": norm.float()})
        self._norm.to(device)
        self._dense = head.to(device)
        self._int8 = Int8Linear(head, torch.float32, device)

    def dense(self, x: Tensor) -> Tensor:
        """Compute the logits with the weights as they are, in float32."""
        normed = self._norm(x.to(self._device))
        return torch.cat([normed @ rows.float().t() for rows in torch.split(self._dense, _ROWS)], -1)

    def int8(self, x: Tensor) -> Tensor:
        """Compute the logits as the runtime does."""
        logits: Tensor = self._int8(self._norm(x.to(self._device)))
        return logits
