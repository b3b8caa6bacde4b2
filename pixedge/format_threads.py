"""Threads for llguidance, which recurses by what a format says: their stack is four times that of a trial.

So recursion that a trial survived ends well here too, and what is small is far below either.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from pixedge.format_probe import STACK

_POOLS: dict[str, ThreadPoolExecutor] = {}
_LOCK = threading.Lock()


def mask_threads() -> ThreadPoolExecutor:
    """Return the threads that work out what may come next, for all answers of the process."""
    return _pool("pixedge-constraint", min(4, os.cpu_count() or 1))


def compile_threads() -> ThreadPoolExecutor:
    """Return the threads that compile formats, so that no mask waits for them."""
    return _pool("pixedge-format", 2)


def _pool(name: str, count: int) -> ThreadPoolExecutor:
    """Return the pool of a name, made at its first use."""
    with _LOCK:
        if name not in _POOLS:
            _POOLS[name] = pool = ThreadPoolExecutor(count, name)
            started = threading.Barrier(count + 1)
            before = threading.stack_size(4 * STACK)  # of memory that is only taken where it is used
            for _ in range(count):
                pool.submit(started.wait)
            threading.stack_size(before)
            started.wait()
        return _POOLS[name]


def _after_fork() -> None:
    """Begin with new threads in a child process; the parent's did not come along."""
    global _LOCK
    _POOLS.clear()
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
