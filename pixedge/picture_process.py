"""Other processes that decode pictures: kept warm, a few of them, each killed when a picture costs too much.

A decoder is a large C library, and a file made by a stranger may keep it busy, eat the memory or crash it.
What a picture may cost follows from its pixels (`Budget`). The process holds itself
to that (`pixedge.picture_decoder`); a clock here is for what waits without working.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import threading
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

from pixedge.own_process import start_module

ANSWER = struct.Struct("<cII")
"""What begins an answer: b"P", width and height of RGB bytes; b"F", the same of a picture whose fitted pixels
follow; b"E" or b"T" (too many pixels), the bytes of a sentence."""

# At the lowest priority on a busy machine a process gets little of the clock, so it may take long.
_CLOCK_FACTOR, _CLOCK_SECONDS = 100, 60

QUICK_SECONDS = 0.15
"""CPU time in which pictures of a few megapixels are decoded, and photos of twelve."""


@dataclass(frozen=True)
class Budget:
    """What a picture may cost: seconds of CPU time, and bytes of memory beside the file's own.

    Both grow with its pixels and have a floor for small ones.
    """

    seconds_a_pixel: float = 0.1e-6
    bytes_a_pixel: int = 20
    least_seconds: float = 1.0
    least_bytes: int = 256 << 20

    def seconds(self, pixels: int) -> float:
        """Return the CPU time in which so many pixels must be decoded."""
        return max(self.least_seconds, pixels * self.seconds_a_pixel)

    def memory(self, pixels: int) -> int:
        """Return the bytes that decoding so many pixels may take."""
        return max(self.least_bytes, pixels * self.bytes_a_pixel)


class ProcessEndedError(Exception):
    """The process ended without an answer; ``over_time`` tells whether it was ended for that."""

    def __init__(self, over_time: bool) -> None:
        """Keep why."""
        super().__init__()
        self.over_time = over_time


class PictureProcesses:
    """A pool: as many processes as are busy at a time, at most ``most`` and one for slow ones; tasks wait."""

    def __init__(self, most: int, budget: Budget | None = None) -> None:
        """Start none yet."""
        self._most, self._budget = most, budget or Budget()
        self._slots, self._slow = threading.BoundedSemaphore(most), threading.BoundedSemaphore(1)
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []

    def warm(self) -> None:
        """Start a process if there is none, and do not wait until it is ready."""
        with self._lock:
            if not self._idle:
                self._idle.append(_spawn())

    def ask(
        self, task: dict[str, Any], data: bytes, max_pixels: int, *, shared: bool = False
    ) -> tuple[bytes, int, int, bytearray]:
        """Have a task done; return the kind of its answer, the two numbers and the bytes.

        task: see `pixedge.picture_decoder`. shared: others wait too, so it gets QUICK_SECONDS at first,
        which is enough for nearly all, and one that needs more is begun again where only such ones wait.
        Raises ProcessEndedError where the process took too much, or crashed, and CapacityError where none can
        be started.
        """
        if shared:
            quick = replace(self._budget, least_seconds=QUICK_SECONDS, seconds_a_pixel=0.0)
            try:
                return self._ask(self._slots, quick, task, data, max_pixels)
            except ProcessEndedError as error:
                if not error.over_time:
                    raise
        return self._ask(self._slow if shared else self._slots, self._budget, task, data, max_pixels)

    def _ask(
        self,
        slots: threading.BoundedSemaphore,
        budget: Budget,
        task: dict[str, Any],
        data: bytes,
        max_pixels: int,
    ) -> tuple[bytes, int, int, bytearray]:
        with slots:
            process = self._take() or _spawn()
            clock = _Clock(process, budget.seconds(max_pixels) * _CLOCK_FACTOR + _CLOCK_SECONDS)
            answer = None
            try:
                answer = _exchange(process, task | {"budget": asdict(budget)}, data)
            finally:
                clock.stop()
                if answer is not None:
                    with self._lock:
                        self._idle.append(process)
                else:
                    ended = _ended_itself(process)
                    _end(process)
            if answer is None:
                raise ProcessEndedError(clock.struck or ended in _TIME_SIGNALS)
            return answer

    def _take(self) -> subprocess.Popen[bytes] | None:
        """Return an idle process, but none that ended meanwhile, as one killed for its memory."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                _end(process)
        return None

    def _forget(self) -> None:
        """Start anew in a forked child, which must not speak on its parent's pipes."""
        self._lost, self._idle = self._idle, []
        self._lock, self._slots = threading.Lock(), threading.BoundedSemaphore(self._most)
        self._slow = threading.BoundedSemaphore(1)

    def close(self) -> None:
        """End the idle processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)


class _Clock:
    """Kills a process when its time on the clock is over."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.struck = False
        self._process = process
        self._timer = threading.Timer(seconds, self._strike)
        self._timer.daemon = True
        self._timer.start()

    def _strike(self) -> None:
        self.struck = True
        self._process.kill()

    def stop(self) -> None:
        self._timer.cancel()


def _ended_itself(process: subprocess.Popen[bytes]) -> int | None:
    """Return by which signal a process ended, once its pipe is closed; None where it has not."""
    try:
        return -process.wait(1)
    except subprocess.TimeoutExpired:
        return None


def _spawn() -> subprocess.Popen[bytes]:
    return start_module(
        "pixedge.picture_decoder",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what could not be written is of no use any more
                stream.close()
    process.wait()


def _exchange(
    process: subprocess.Popen[bytes], task: dict[str, Any], data: bytes
) -> tuple[bytes, int, int, bytearray] | None:
    """Send a task and read its answer; None where the process ends before it is complete."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(task | {"bytes": len(data)}).encode() + b"\n")
        process.stdin.write(data)
        process.stdin.flush()
    except OSError:
        return None
    header = process.stdout.read(ANSWER.size)
    if len(header) < ANSWER.size:
        return None
    kind, first, second = ANSWER.unpack(header)
    if kind == b"F":
        size = int.from_bytes(process.stdout.read(4), "little")
    else:
        size = first * second * 3 if kind == b"P" else first
    content = bytearray(size)
    return (kind, first, second, content) if _fill(process.stdout, content) else None


def _fill(stream: IO[bytes], content: bytearray) -> bool:
    """Read until the buffer is full; whether it is."""
    view, at = memoryview(content), 0
    while at < len(content):
        count = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            return False
        at += count
    return True


_TIME_SIGNALS = {int(getattr(signal, name)) for name in ("SIGPROF", "SIGXCPU") if hasattr(signal, name)}

PROCESSES = PictureProcesses(max(2, min(4, os.cpu_count() or 1)))
"""The processes of this one."""

atexit.register(PROCESSES.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESSES._forget)
