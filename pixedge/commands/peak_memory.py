"""The most memory that this process has held so far."""

import re
import sys
from pathlib import Path


def peak_memory() -> dict[str, int | None]:
    """Give bytes: "rss" of the process in RAM, "cuda" that torch took from all GPUs.

    None where it cannot be told, and for "cuda" where no GPU was used. What ONNX Runtime takes from a GPU is
    not in it.
    """
    return {"rss": _peak_rss(), "cuda": _peak_cuda()}


def _peak_rss() -> int | None:
    # Not getrusage on Linux: there a child starts with the peak of the process that started it.
    if sys.platform == "linux":
        try:
            status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_cuda() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(int(torch.cuda.max_memory_reserved(index)) for index in range(torch.cuda.device_count()))
