"""The machine that something ran on, for people who compare times."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from pixedge import __version__
from pixedge.onnx_runtime import onnxruntime


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Name the processor, the memory, the GPU if ``device`` is one, the system and the versions.

    cores: those that this process may use. threads: torch's. Memory is in bytes. None stands for what cannot
    be told, and for the GPU where none was used.
    """
    gpu = torch.cuda.get_device_properties(device) if device is not None and device.type == "cuda" else None
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpu": gpu.name if gpu else None,
        "gpu_memory_bytes": gpu.total_memory if gpu else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "pixedge": __version__,
        "torch": str(torch.__version__),
        "onnxruntime": onnxruntime.__version__,
    }


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Give the processor's name; on ARM and outside of Linux often its architecture alone."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, and not every system the names
        return None
