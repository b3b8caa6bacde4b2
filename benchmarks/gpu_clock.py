"""A device, how fast it is at best, and the time that a benchmark has."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from pixedge.prediction import Machine


class Bench:
    """A device, its limits and the time that is left."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        """Begin to count the time."""
        self.device, self.end = device, time.perf_counter() + seconds
        self.bandwidth = self.operations = 0.0
        self.left_out: list[str] = []

    def now(self) -> float:
        """Return the time, once the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def has_time(self, what: str, seconds: float) -> bool:
        """Tell whether so many seconds are left; note what is left out otherwise."""
        if time.perf_counter() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False

    def median(self, call: Callable[[], object], repeats: int) -> float:
        """Return the median time of a call that has been made once before."""
        call()
        times = []
        for _ in range(repeats):
            start = self.now()
            call()
            times.append(self.now() - start)
        return statistics.median(times)

    def captured(self, calls: Sequence[Callable[[], object]]) -> float:
        """Return the time of one of the calls, captured many times over in one graph, as a step has them."""
        if self.device.type != "cuda":
            return self.median(calls[0], 1)
        for call in calls:
            call()
        repeats = max(1, 20 // len(calls))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in [*calls] * repeats:
                call()
        return self.median(graph.replay, 7) / repeats / len(calls)

    def limits(self, tiny: bool) -> dict[str, float]:
        """Measure how fast the device copies and multiplies."""
        size, side = (1 << 16, 64) if tiny else (1 << 31, 8192)
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.bandwidth = 2 * size / self.median(lambda: target.copy_(source), 9)
        left, right = (torch.randn(side, side, device=self.device).to(torch.bfloat16) for _ in range(2))
        self.operations = 2 * side**3 / self.median(lambda: left @ right, 9)
        return {"copy_bytes_per_second": self.bandwidth, "product_operations_per_second": self.operations}

    @property
    def machine(self) -> Machine:
        """The device by its measured limits, of which all would be reached."""
        return Machine("measured", self.bandwidth, self.operations, ((1, 1.0),), 1.0, 1.0, True)
