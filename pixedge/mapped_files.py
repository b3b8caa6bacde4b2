"""Files of a model that are mapped into memory: how much of them is in it, and letting go of what was read.

Such memory is the file's own cache, which the system takes back when it needs it; it counts as the process's
all the same. Only Linux tells, and elsewhere nothing is known and nothing done.
"""

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MADV_DONTNEED = 4
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ +(/.*)$")


@dataclass(frozen=True)
class _Mapping:
    start: int
    end: int
    resident: int  # bytes
    changed: bool  # pages that differ from the file


def mapped_bytes(folder: Path) -> int:
    """Return how many bytes of the files in a folder are mapped and in memory now."""
    return sum(mapping.resident for mapping in _mappings(folder))


def let_go(folder: Path) -> None:
    """Take what is mapped of a folder's files out of the process; what is read again comes back by itself."""
    for mapping in _mappings(folder):
        if mapping.resident and not mapping.changed:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.end - mapping.start), _MADV_DONTNEED
            )


def _mappings(folder: Path) -> Iterator[_Mapping]:
    """Read /proc/self/smaps: a line for each mapping, then lines of what is known of it."""
    try:
        text = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    inside = f"{folder.resolve()}/"
    span: tuple[int, int] | None = None
    resident = 0
    for line in text.splitlines():
        if found := _HEAD.match(line):
            span = (int(found[1], 16), int(found[2], 16)) if found[4].startswith(inside) else None
        elif re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            span = None
        elif span is None:
            continue
        elif line.startswith("Rss:"):
            resident = 1024 * int(line.split()[1])
        elif line.startswith("Anonymous:"):
            yield _Mapping(*span, resident, line.split()[1] != "0")
            span = None
