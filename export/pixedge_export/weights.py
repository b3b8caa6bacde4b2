"""The tensors of a checkpoint as an export takes them: finite, and in 16 bits where they stay unquantised."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixedge.errors import ExportError
from pixedge_export.checkpoint import Checkpoint

_ROWS = 8192
"""Rows that are checked at a time, which bounds the memory that checking an embedding table takes."""


@dataclass(frozen=True)
class Weights:
    """Reads tensors by canonical name; ExportError names one that has NaN or infinity."""

    checkpoint: Checkpoint

    def read(self, name: str) -> Tensor:
        """Return a tensor in the type that it is stored in."""
        return _finite(self.checkpoint.tensor(name), name, "NaN or infinity")

    def read_16bit(self, name: str) -> Tensor:
        """Return a tensor in 16 bits: bfloat16, or float16 where the checkpoint has that."""
        tensor = self.read(name)
        return tensor if tensor.dtype == torch.float16 else tensor.to(torch.bfloat16)

    def read_vision(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the encoder's and the adapter's tensors among ``names`` in float16, as they are stored."""
        parts = ("vision_tower.", "multi_modal_projector.")
        return {name: self.read_float16(name) for name in names if name.startswith(parts)}

    def read_float16(self, name: str) -> Tensor:
        """Return a tensor in float16; ExportError where that cannot hold a value."""
        return _finite(self.read(name).to(torch.float16), name, "a value that float16 cannot hold")


def _finite(tensor: Tensor, name: str, fault: str) -> Tensor:
    if not all(bool(torch.isfinite(rows).all()) for rows in torch.split(tensor, _ROWS)):
        raise ExportError(f"{name} contains {fault}; check the checkpoint")
    return tensor
