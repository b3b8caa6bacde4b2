"""What a machine can do at best: bytes read a second, operations of a 16-bit product a second."""

import time
from dataclasses import dataclass

import torch

from pixedge.kernels.cpu.compiled import aligned_empty, library, pointer
from pixedge.profile.samples import Samples

READ_BYTES = 1 << 30
"""More than any cache holds."""


@dataclass(frozen=True)
class Limits:
    """How long reading ``bytes`` took, and a product of ``operations``, multiplications and additions."""

    bytes: int
    operations: int
    reading: Samples
    products: Samples

    @property
    def bytes_per_second(self) -> float:
        """How fast memory is read."""
        return self.bytes / self.reading.median

    @property
    def operations_per_second(self) -> float:
        """How fast a large product goes."""
        return self.operations / self.products.median

    def and_later(self, other: "Limits") -> "Limits":
        """Join what the same machine gave at another time."""
        assert (self.bytes, self.operations) == (other.bytes, other.operations)
        reading = Samples(self.reading.seconds + other.reading.seconds)
        return Limits(
            self.bytes, self.operations, reading, Samples(self.products.seconds + other.products.seconds)
        )


class LimitTrial:
    """Memory to read and matrices to multiply, which can be timed again and again."""

    def __init__(self, device: torch.device, dtype: torch.dtype, size: int = READ_BYTES) -> None:
        """Take ``size`` bytes of memory and two matrices of ``dtype``."""
        self.device = device
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        if device.type == "cpu":
            self.memory = aligned_empty((size,), torch.uint8)  # in large pages, as the weights are
        self.memory.fill_(1)
        side = min(4096, int((size / 8) ** 0.5))
        # Of random numbers: a GPU multiplies ones with less power, and therefore faster.
        self.left, self.right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self._reading: list[float] = []
        self._products: list[float] = []

    def measure(self) -> None:
        """Time both once more."""
        start = rested(self.device)
        opened = library() if self.device.type == "cpu" else None
        if opened is None:
            self.memory.view(torch.int64).sum()
        else:
            opened.pixedge_read(pointer(self.memory), self.memory.nbytes)
        self._reading.append(finish(self.device) - start)
        start = finish(self.device)
        self.left @ self.right
        self._products.append(finish(self.device) - start)

    @property
    def limits(self) -> Limits:
        """What was found so far, at least one measurement."""
        side = len(self.left)
        found = (Samples(tuple(each)) for each in (self._reading, self._products))
        return Limits(self.memory.nbytes, 2 * side**3, *found)


def measure_limits(
    device: torch.device, dtype: torch.dtype, times: int = 5, size: int = READ_BYTES
) -> Limits:
    """Measure, after one time that does not count, and give the memory back."""
    trial = LimitTrial(device, dtype, size)
    for _ in range(times + 1):
        trial.measure()
    found = trial.limits
    del trial
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reading, products = (Samples(each.seconds[1:]) for each in (found.reading, found.products))
    return Limits(found.bytes, found.operations, reading, products)


def finish(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rested(device: torch.device) -> float:
    """Return the time, once torch's threads have stopped looking for more work after a product."""
    time.sleep(0.02)
    return finish(device)
