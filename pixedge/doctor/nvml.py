"""NVIDIA's cards as their driver tells of them: through NVML by ctypes, which comes with every driver.

Structures and constants are those of nvml.h. torch is not needed, so the cards are known even where torch is
missing or was built without CUDA.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import byref, c_char, c_int, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path

_LIBRARIES = ("nvml.dll",) if sys.platform == "win32" else ("libnvidia-ml.so.1",)
_TEXT = 96
_MOST_PROCESSES = 256
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
_NVIDIA, _DISPLAYS = "0x10de", ("0x0300", "0x0302")  # PCI: the vendor, and the classes of its cards

Load = Callable[[str], ctypes.CDLL]


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a card; bytes None where the driver does not tell."""

    pid: int
    name: str
    bytes: int | None


@dataclass(frozen=True)
class Card:
    """A card: its name, its memory and the free part in bytes, and who holds the rest."""

    name: str
    total: int
    free: int
    holders: tuple[Holder, ...]


@dataclass(frozen=True)
class Driver:
    """A driver: its version, the CUDA that it supports as (major, minor), and its cards."""

    version: str
    cuda: tuple[int, int]
    cards: tuple[Card, ...]


class NvmlError(Exception):
    """The driver's library is there and does not work; the text says why."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", c_uint),
        ("bytes", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    )


def read_driver(load: Load = ctypes.CDLL) -> Driver | None:
    """Ask the driver; None where there is none. load opens a library by its name.

    Raises NvmlError for a driver that does not answer.
    """
    library = None
    for name in _LIBRARIES:
        try:
            library = load(name)
            break
        except OSError:
            continue
    if library is None:
        return None
    _call(library, "nvmlInit_v2")
    try:
        version = (c_char * _TEXT)()
        _call(library, "nvmlSystemGetDriverVersion", version, _TEXT)
        cuda, count = c_int(), c_uint()
        _call(library, "nvmlSystemGetCudaDriverVersion_v2", byref(cuda))
        _call(library, "nvmlDeviceGetCount_v2", byref(count))
        cards = tuple(_card(library, index) for index in range(count.value))
        return Driver(_text(version), (cuda.value // 1000, cuda.value % 1000 // 10), cards)
    finally:
        library.nvmlShutdown()


def cards_on_the_bus(root: Path = Path("/sys/bus/pci/devices")) -> int:
    """Count NVIDIA cards that are plugged in, with a driver or without; 0 where the system does not tell."""
    count = 0
    try:
        devices = list(root.iterdir())
    except OSError:
        return 0
    for device in devices:
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        count += vendor == _NVIDIA and kind[:6] in _DISPLAYS
    return count


def _card(library: ctypes.CDLL, index: int) -> Card:
    handle, memory, name = c_void_p(), _Memory(), (c_char * _TEXT)()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", index, byref(handle))
    _call(library, "nvmlDeviceGetName", handle, name, _TEXT)
    _call(library, "nvmlDeviceGetMemoryInfo", handle, byref(memory))
    return Card(_text(name), memory.total, memory.free, _holders(library, handle))


def _holders(library: ctypes.CDLL, handle: c_void_p) -> tuple[Holder, ...]:
    """List the processes that compute on a card; none where the driver does not tell."""
    count, processes = c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
    try:
        _call(library, "nvmlDeviceGetComputeRunningProcesses_v3", handle, byref(count), processes)
    except (NvmlError, AttributeError):  # an old driver
        return ()
    return tuple(
        Holder(each.pid, _process_name(each.pid), None if each.bytes == _UNKNOWN else each.bytes)
        for each in processes[: count.value]
    )


def _process_name(pid: int) -> str:
    if pid == os.getpid():
        return "pixedge doctor"
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip() or "unknown"
    except OSError:  # of another container, or not on Linux
        return "unknown"


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    code = getattr(library, name)(*arguments)
    if code:
        raise NvmlError(f"{name} failed with code {code}")


def _text(data: "ctypes.Array[c_char]") -> str:
    return data.value.decode("utf-8", errors="replace")
