"""How much memory a device has, what of it a model may take, and what is said where it runs out.

What a model needs is ``pixedge.plan``'s to tell.
"""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pixedge.config import DecoderConfig
from pixedge.errors import CapacityError
from pixedge.kernels.cuda.layout import PAGE
from pixedge.plan import Plan
from pixedge.scratch import CUDA_CONTEXT
from pixedge.stored_weights import token_bytes

if TYPE_CHECKING:
    import torch

SPARE_BYTES = 2 << 30
"""Left free beside the cache: a chunk's activations, logits, the largest picture's encoding."""


def plan_cache(
    config: DecoderConfig,
    dtype: "torch.dtype",
    bits: int,
    device: "torch.device",
    tokens: int | None,
) -> int:
    """Return how many tokens the cache is to hold, a multiple of 16; the weights are loaded by now.

    Without ``tokens`` that is the model's context, or as much of it as leaves 2 GiB of the free memory to
    everything else, or half of the free memory where that is more. Raises CapacityError when ``tokens`` need
    more than is free.
    """
    each, free = token_bytes(config, bits, dtype.itemsize), free_memory(device)
    wanted = -(-(tokens or config.context) // PAGE) * PAGE
    if free is None or wanted * each <= max(free - SPARE_BYTES, free // 2):
        return wanted
    if tokens is None:
        fits = max(free - SPARE_BYTES, free // 2) // each // PAGE * PAGE
        return max(PAGE, fits)
    if wanted * each <= free:
        return wanted
    raise CapacityError(
        f"a cache for {tokens:,} tokens takes {wanted * each:,} bytes and {free:,} are free; "
        "give a smaller --context" + ("" if bits == 8 else ", or --kv-cache 8bit")
    )


def usable_memory(device: "torch.device") -> int | None:
    """Return the bytes of ``device`` that a model may take where nobody says: what is free, less a margin.

    What the process holds already counts as usable, for a plan counts it too. The margin is an eighth of what
    is free, 2 GiB at most, for other programs: 512 MiB at most on a GPU. None where it cannot be told.
    """
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
        free += min(CUDA_CONTEXT, torch.cuda.mem_get_info(device)[1] - free)  # of which some is ours by now
        return free - min(free // 8, 512 << 20)
    return usable_ram()


def usable_ram() -> int | None:
    """Return what ``usable_memory`` does for a CPU."""
    free = free_ram()
    return None if free is None else free + held_ram() - min(free // 8, 2 << 30)


def enforce(plan: Plan, device: "torch.device") -> None:
    """Let torch take no more of a CUDA device than the limit leaves to it beside CUDA and ONNX Runtime.

    A CPU's memory has no such lock: there the plan alone keeps what is taken below its limit.
    """
    if plan.torch_limit is not None:
        limit_memory(device, plan.torch_limit)


def limit_memory(device: "torch.device", limit: int) -> None:
    """Let torch take no more than ``limit`` bytes of a CUDA device; nothing is done on a CPU."""
    if device.type == "cuda":
        import torch

        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)


def held_ram() -> int:
    """Return the bytes of RAM that this process has in use; 0 where the system does not tell."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", _read(Path("/proc/self/status")), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def free_memory(device: "torch.device") -> int | None:
    """Return the bytes that can be taken on ``device`` without swapping; None where it cannot be told."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return free_ram()


def free_ram() -> int | None:
    """Return the bytes of RAM that can be taken without swapping; None where it cannot be told."""
    if sys.platform == "linux":
        return _free_linux()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _free_linux(root: Path = Path("/")) -> int | None:
    """Take the least of what the machine, and the control group of a container, have left."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    free = [int(found[1]) * 1024] if found else []
    for folder, limit, used in (
        ("sys/fs/cgroup", "memory.max", "memory.current"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        numbers = [_read(root / folder / name).strip() for name in (limit, used)]
        if all(number.isdecimal() for number in numbers):
            # Files that were read count as used although they can be dropped at any time.
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)", _read(root / folder / "memory.stat"), re.MULTILINE
            )
            free.append(int(numbers[0]) - int(numbers[1]) + (int(cached[1]) if cached else 0))
    return max(0, min(free)) if free else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
