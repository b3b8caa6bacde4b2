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

    rss: of the process in RAM. torch: that torch took of the GPU. device: of the whole GPU at the end of the
    phase, with ONNX Runtime's arena, CUDA's context and other programs; arenas do not shrink.
    """

    phase: str
    rss: int | None
    torch: int | None = None
    device: int | None = None


class MemoryMeter:
    """Measures phase after phase."""

    def __init__(self, device: torch.device) -> None:
        """Begin with no phase; ``device`` is where the decoder is to run."""
        self.device = device
        self._peaks: dict[str, Peak] = {}

    @property
    def peaks(self) -> list[Peak]:
        """The phases in the order in which they first began."""
        return list(self._peaks.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what is done inside; a phase that comes again counts with the greatest of all."""
        told = _forget_peak()
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        taken = held = None
        if gpu:
            taken = int(torch.cuda.max_memory_reserved(self.device))
            free, total = torch.cuda.mem_get_info(self.device)
            held = total - free
        found = Peak(name, _peak() if told else None, taken, held)
        known = self._peaks.get(name, found)
        self._peaks[name] = Peak(
            name,
            _greater(known.rss, found.rss),
            _greater(known.torch, found.torch),
            _greater(known.device, found.device),
        )


def _greater(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)


def _forget_peak() -> bool:
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
