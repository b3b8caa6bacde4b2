"""The compiled library: found beside this file, told which instructions to use, and the structures it reads.

PIXEDGE_CPU_KERNEL names the instructions (amx, avx512, avx2, neon, c) instead of the best ones that the CPU
has; "torch" leaves the library out altogether.
"""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int64, c_long, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from pixedge.errors import UsageError
from pixedge.terminal import complain

VARIABLE = "PIXEDGE_CPU_KERNEL"
TORCH = "torch"
VARIANTS = ("amx", "avx512", "avx2", "neon", "c")

LARGE_PAGE = 2 << 20
"""Bytes of the system's large pages; a weight that begins on one has as few of them as can be."""


class Int4Weight(ctypes.Structure):
    """A packed 4-bit weight, as ``int4_weight`` in kernels.h."""

    _fields_ = (
        ("lines", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("group", c_int64),
    )


class Int8Weight(ctypes.Structure):
    """A packed 8-bit weight, as ``int8_weight`` in kernels.h."""

    _fields_ = (("lines", c_void_p), ("scales", c_void_p), ("outputs", c_int64), ("inputs", c_int64))


class Layer(ctypes.Structure):
    """A decoder layer, as ``layer`` in layer.c."""

    _fields_ = (
        *((name, Int4Weight) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        *((name, c_int64) for name in ("dim", "heads", "kv_heads", "head_dim", "ffn")),
        ("eps", c_double),
    )


class Step(ctypes.Structure):
    """A step's tokens and the cache, as ``step`` in attention.h."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "sequences", "max_pages")),
        *((name, c_void_p) for name in ("tables", "starts", "counts", "cos", "sin")),
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        ("pages", c_int64),
        ("scratch", c_void_p),
        ("chunk_pages", c_int64),
    )


_SIGNATURES = {
    "pixedge_choose": (c_int, [c_char_p]),
    "pixedge_chosen": (c_char_p, []),
    "pixedge_set_threads": (None, [c_int]),
    "pixedge_threads": (c_int, []),
    "pixedge_int4_few_rows": (c_int, [POINTER(Int4Weight), c_void_p, c_int64, c_void_p]),
    "pixedge_int4_many_rows_onto": (
        c_int,
        [c_void_p, c_long, c_long, *(c_void_p,) * 3, c_long, c_long, c_void_p, c_void_p],
    ),
    "pixedge_norm_rows": (c_int, [c_void_p, c_void_p, c_float, c_long, c_long, c_void_p]),
    "pixedge_turn_rows": (c_int, [c_void_p, c_long, c_long, c_long, c_void_p, c_void_p]),
    "pixedge_gate_rows": (c_int, [c_void_p, c_void_p, c_long, c_long]),
    "pixedge_flash": (
        c_int,
        [c_void_p, c_long, c_long, *(c_void_p,) * 4, c_long, c_long, c_void_p, c_long, c_void_p],
    ),
    "pixedge_int8_few_rows": (c_int, [POINTER(Int8Weight), c_void_p, c_int64, c_void_p]),
    "pixedge_int4_unpack": (None, [POINTER(Int4Weight), c_void_p]),
    "pixedge_int4_repack": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "pixedge_int8_round": (None, [c_void_p, c_int, c_int64, c_int64, c_void_p, c_void_p]),
    "pixedge_large_pages": (None, [c_void_p, c_int64]),
    "pixedge_release": (None, [c_void_p, c_int64]),
    "pixedge_step_bytes": (c_int64, [POINTER(Layer), POINTER(Step)]),
    "pixedge_layer": (None, [POINTER(Layer), POINTER(Step), c_int64, c_void_p, c_void_p]),
    "pixedge_read": (c_int64, [c_void_p, c_int64]),
}


def library() -> ctypes.CDLL | None:
    """Return the library with the wanted instructions chosen, on as many threads as torch; None without one.

    Raises UsageError where PIXEDGE_CPU_KERNEL names what is unknown, not built or not in this CPU.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == TORCH:
        return None
    if wanted not in ("", *VARIANTS):
        raise UsageError(f"{VARIABLE} is {wanted!r}; use one of {', '.join((*VARIANTS, TORCH))}")
    opened = _open()
    if opened is None:
        if wanted:
            raise UsageError(f"{VARIABLE} is {wanted!r}, but pixedge was installed without a C compiler")
        return None
    if _choose(opened, wanted):
        raise UsageError(
            f"{VARIABLE} is {wanted!r}, which this CPU does not have; leave it out, or use c or {TORCH}"
        )
    opened.pixedge_set_threads(torch.get_num_threads())
    return opened


def variant() -> str:
    """Name the instructions in use, "torch" without the library."""
    opened = library()
    return TORCH if opened is None else opened.pixedge_chosen().decode()


@cache
def announce() -> None:
    """Tell once, on stderr, where torch serves because the library was not built."""
    if os.environ.get(VARIABLE, "") != TORCH and _open() is None:
        complain(
            "no compiled CPU kernels, so answers will be slower; install a C compiler and then pixedge again"
        )


def aligned_empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return memory for a kernel to read: aligned to lines of 64 bytes, in large pages where it is large."""
    count = dtype.itemsize
    for size in shape:
        count *= size
    opened = _open()
    if opened is None or count < 2 * LARGE_PAGE:
        return torch.empty(shape, dtype=dtype)
    memory = torch.empty(count + LARGE_PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % LARGE_PAGE
    opened.pixedge_large_pages(memory.data_ptr() + start, count)
    return memory[start : start + count].view(dtype).view(shape)


def release(tensor: Tensor) -> None:
    """Give back the memory of a tensor that is read no more; if it maps a file, the file's pages leave."""
    opened = _open()
    if opened is not None and tensor.device.type == "cpu":
        opened.pixedge_release(pointer(tensor), tensor.nbytes)


def pointer(tensor: Tensor | None) -> int | None:
    """Return a contiguous CPU tensor's address, None for None."""
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.device.type == "cpu", f"{tuple(tensor.shape)} on {tensor.device}"
    return tensor.data_ptr()


_chosen: str | None = None


def _choose(opened: ctypes.CDLL, wanted: str) -> bool:
    """Choose the variant unless it is chosen already; tell whether the CPU lacks it."""
    global _chosen
    if wanted != _chosen:
        if opened.pixedge_choose(wanted.encode() or None):
            return True
        _chosen = wanted
    return False


@cache
def _open() -> ctypes.CDLL | None:
    """Load the library, if the package was built with one."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_cpu{suffix}")
        if path.is_file():
            try:
                opened = ctypes.CDLL(str(path))
                for name, (result, arguments) in _SIGNATURES.items():
                    function = getattr(opened, name)
                    function.restype, function.argtypes = result, arguments
            except (OSError, AttributeError):  # built for another system, or by another version
                continue
            return opened
    return None
