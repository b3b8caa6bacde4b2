"""The memory of a process and of those that it started, as Linux tells it."""

import contextlib
import re
import threading
import time
from pathlib import Path


def tree(pid: int) -> list[int]:
    """Give a process and everything below it."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
    return found


def held(pid: int) -> int:
    """Give the bytes that a process tree holds and that are no files."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/status").read_text()
            if found := re.search(r"RssAnon:\s+(\d+) kB", text):
                total += int(found[1]) << 10
    return total


class Watch:
    """The most that a process tree has held since it was last asked, seen every few ms."""

    def __init__(self, pid: int, seconds: float = 0.02) -> None:
        self._pid, self._seconds, self._peak = pid, seconds, 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ending.is_set():
            self._peak = max(self._peak, held(self._pid))
            time.sleep(self._seconds)

    def take(self) -> int:
        """Give the peak and begin anew."""
        peak, self._peak = max(self._peak, held(self._pid)), 0
        return peak

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
