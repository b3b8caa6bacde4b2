"""The most memory that each phase of a process took."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """The most bytes during a phase; None where it cannot be told or nothing is there.

    rss: of the process in RAM. torch: that torch took of the GPU. device: of the whole GPU at the phase's end,
    with ONNX Runtime's arena, CUDA's context and other programs: arenas do not shrink.
    """

    phase: str
    rss: int | None
    torch: int | None = None
    device: int | None = None


class MemoryMeter:
    """Measures phase after phase."""

    def __init__(self) -> None:
        """Begin with no phase."""
        self.peaks: list[Peak] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what is done inside; a phase that comes again counts with the more of both."""
        told = _reset()
        gpu = torch.cuda.is_initialized()
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        yield
        taken = device = None
        if torch.cuda.is_initialized():
            taken = int(torch.cuda.max_memory_reserved())
            free, total = torch.cuda.mem_get_info()
            device = total - free
        self._add(Peak(name, _peak() if told else None, taken, device))

    def _add(self, peak: Peak) -> None:
        for at, known in enumerate(self.peaks):
            if known.phase == peak.phase:
                more = (_larger(known.rss, peak.rss), _larger(known.torch, peak.torch))
                self.peaks[at] = Peak(peak.phase, *more, _larger(known.device, peak.device))
                return
        self.peaks.append(peak)


def _larger(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _reset() -> bool:
    """Let the system forget this process's peak (proc(5), clear_refs: 5); False where it does not."""
    if sys.platform != "linux":
        return False
    try:
        _CLEAR.write_text("5")
    except OSError:  # not every container allows it
        return False
    return True


def _peak() -> int | None:
    found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(errors="replace"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
