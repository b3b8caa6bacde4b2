"""Tensors from mapped files to the device, through page-locked memory: reading and sending overlap."""

import torch
from torch import Tensor

from pixedge.kernels.cpu.compiled import release

BYTES = 64 << 20
"""Bytes of one of the two buffers."""


class Staging:
    """Copies tensors to one device, one after the other; where that is the CPU nothing is copied.

    A copy engine reads page-locked memory by itself: while it sends one buffer, the next part of the file is
    read into the other. A tensor that lies in a mapped file is let go of as soon as it is sent.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the two buffers, if ``device`` is a GPU."""
        self.device = device
        self._buffers: list[Tensor] = []
        self._sent: list[torch.cuda.Event] = []
        self._turn = 0
        if device.type == "cuda":
            self._buffers = [torch.empty(BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._sent = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def send(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device with what ``tensor``, contiguous and on the CPU, holds."""
        if not self._buffers:
            return tensor
        assert tensor.is_contiguous() and tensor.device.type == "cpu"
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        source, target = tensor.view(-1).view(torch.uint8), made.view(-1).view(torch.uint8)
        for start in range(0, len(source), BYTES):
            part = source[start : start + BYTES]
            staged, sent = self._buffers[self._turn], self._sent[self._turn]
            self._turn = 1 - self._turn
            sent.synchronize()
            staged[: len(part)].copy_(part)
            target[start : start + len(part)].copy_(staged[: len(part)], non_blocking=True)
            sent.record()
        release(tensor)
        return made
