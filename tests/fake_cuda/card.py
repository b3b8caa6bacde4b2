"""The stand-in's counts, and a smaller card, from inside the process that runs on it."""

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

NAMES = (
    *("used", "peak", "mallocs", "launches", "triton_launches", "graphs", "replays", "to_device", "to_host"),
    *("syncs", "captured_mallocs", "captured_syncs", "captured_pageable", "captured_nodes"),
    *("captured_triton", "overwritten"),
)
MOST_DEVICES = 4


class _Stats(ctypes.Structure):
    """``struct stats`` of driver.h."""

    _fields_ = (*((name, ctypes.c_long) for name in NAMES), ("used_on", ctypes.c_long * MOST_DEVICES))


@dataclass(frozen=True)
class Counts:
    """What happened so far; see driver.h."""

    used: int
    peak: int
    mallocs: int
    launches: int
    triton_launches: int
    graphs: int
    replays: int
    to_device: int
    to_host: int
    syncs: int
    captured_mallocs: int
    captured_syncs: int
    captured_pageable: int
    captured_nodes: int
    captured_triton: int
    overwritten: int
    used_on: tuple[int, ...]

    @property
    def faults(self) -> dict[str, int]:
        """What a real card refuses while a graph is captured, and what it may read too late."""
        names = ("captured_mallocs", "captured_syncs", "captured_pageable", "overwritten")
        return {name: found for name in names if (found := getattr(self, name))}


def driver() -> ctypes.CDLL | None:
    """Return the stand-in, if this process runs on it."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "fake_stats") else None


def _driver() -> ctypes.CDLL:
    library = driver()
    assert library is not None, "this process does not run on the stand-in driver"
    return library


def counts() -> Counts:
    """Read the counts."""
    found = _Stats()
    _driver().fake_stats(ctypes.byref(found))
    return Counts(*(getattr(found, name) for name in NAMES), tuple(found.used_on))


@contextlib.contextmanager
def full(*, torchs_too: bool = True) -> Iterator[None]:
    """Let every allocation on the card fail; torchs_too: also what torch would give from what it keeps."""
    import torch

    if torchs_too:
        torch.cuda.empty_cache()
    _driver().fake_full(1)
    try:
        yield
    finally:
        _driver().fake_full(0)
