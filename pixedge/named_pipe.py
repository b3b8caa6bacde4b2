"""A named pipe as a source of bytes, which does not wait for ever for whoever was to write into it."""

import os
import select
import time
from pathlib import Path

WRITER_SECONDS = 3.0
"""The longest that a pipe may have nobody who writes into it."""

SILENCE_SECONDS = 60.0
"""The longest that a writer may keep silent."""


class NamedPipe:
    """The reading end of a pipe, such as a shell makes of <(command); use it in a ``with`` block."""

    def __init__(self, path: Path) -> None:
        """Open the pipe at once, whether or not somebody writes into it; raises OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._begun = False

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes, none at the end; raises TimeoutError where nothing comes."""
        start = time.monotonic()
        while True:
            try:
                data = os.read(self._file, size)
                written = bool(data) or self._begun
            except BlockingIOError:
                data, written = None, True
            if data or (data is not None and self._begun):
                self._begun = True
                return data
            if time.monotonic() - start > (SILENCE_SECONDS if written else WRITER_SECONDS):
                raise TimeoutError(0, "nothing is written into this pipe")
            if written:
                select.select([self._file], [], [], 1.0)
            else:  # where there was no writer yet, select does not wait for one on all systems
                time.sleep(0.02)

    def __enter__(self) -> "NamedPipe":
        """Return the pipe."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._file)
