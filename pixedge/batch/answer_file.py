"""The file of answers: lines of JSON that are appended whole, and read again to go on where a run stopped.

    open ── heal the end ── take out failed answers that are to come again ── append … ── put in order

A line is written by a single call and reaches the operating system before the next one is begun, so whatever
ends the program, the file holds whole lines, but for the last one where the disk was full or the machine
stopped. Only one program at a time may have the file open.
"""

import contextlib
import errno
import itertools
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixedge.errors import PixedgeError, UsageError

SETTINGS = "settings"
"""The key, in a line's "pixedge", of the digest of what was asked."""

_COPY = 1 << 20


@dataclass(frozen=True)
class Line:
    """A line of the file: where it lies, whose answer it is, to what, and whether it failed."""

    offset: int
    length: int
    id: str
    digest: str
    failed: bool


class AnswerFile:
    """An open file of answers; use it in a ``with`` block."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, and read which answers it holds.

        Raises UsageError where it cannot be a file of answers, PixedgeError where another program writes it.
        """
        self.path = path
        self._regular = True
        self._file = self._open()
        try:
            self._lines = {line.id: line for line in self._read()} if self._regular else {}
        except BaseException:
            os.close(self._file)
            raise

    def finished(self, digests: dict[str, str]) -> set[str]:
        """Return which ids of a batch, given with the digests of what is asked, have their answer.

        Answers that failed are taken out of the file, as they come again. Raises UsageError where an answer
        is one to another question.
        """
        for id, line in self._lines.items():
            if id in digests and digests[id] != line.digest:
                raise UsageError(
                    f"{self.path} holds an answer for {id} to another question, or with other settings; give "
                    "another --out, or remove that file"
                )
        failed = {id for id, line in self._lines.items() if line.failed and id in digests}
        if failed:
            self._rewrite([line for line in self._lines.values() if line.id not in failed])
        return {id for id in self._lines if id in digests}

    def append(self, id: str, digest: str, failed: bool, answer: dict[str, Any]) -> None:
        """Write an answer, digest included.

        Raises PixedgeError where the disk does not take it, and then the file is as it was before.
        """
        data = json.dumps(answer | {"pixedge": {SETTINGS: digest}}, ensure_ascii=True).encode() + b"\n"
        offset = os.lseek(self._file, 0, os.SEEK_END) if self._regular else 0
        try:
            written = os.write(self._file, data)
            while written < len(data):  # disks that fill up take a part; a second try tells the reason
                written += os.write(self._file, data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, offset)
            raise PixedgeError(
                f"{self.path} cannot be written ({error.strerror}); make room, and give the same command "
                "again: it goes on from here"
            ) from error
        self._lines[id] = Line(offset, len(data), id, digest, failed)

    def put_in_order(self, ids: Iterable[str]) -> None:
        """Bring the lines into the order of ids; those of others stay behind them as they were."""
        order = {id: index for index, id in enumerate(ids)}
        lines = sorted(self._lines.values(), key=lambda line: (order.get(line.id, len(order)), line.offset))
        if self._regular and any(one.offset > next.offset for one, next in itertools.pairwise(lines)):
            self._rewrite(lines)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def __enter__(self) -> "AnswerFile":
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            file = os.open(self.path, flags, 0o666)
        except IsADirectoryError:
            raise UsageError(
                f"--out {self.path} is a folder; give a file, as {self.path}/answers.jsonl"
            ) from None
        except OSError as error:
            raise UsageError(
                f"--out {self.path} cannot be written ({error.strerror}); give another file"
            ) from None
        self._regular = stat.S_ISREG(os.fstat(file).st_mode)
        if self._regular and not _lock(file):
            os.close(file)
            raise PixedgeError(f"{self.path} is being written by another program; wait for it to end")
        return file

    def _read(self) -> list[Line]:
        """Read all lines; the last one is completed or cut off where it was not written whole."""
        lines: list[Line] = []
        offset = 0
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            for number, data in enumerate(file, 1):
                if not data.endswith(b"\n"):
                    self._heal(offset, data)
                    if not _is_json(data):
                        break
                if data.strip():
                    lines.append(self._parse(number, offset, data))
                offset += len(data)
        return lines

    def _heal(self, offset: int, data: bytes) -> None:
        if _is_json(data):
            os.write(self._file, b"\n")
        else:
            os.ftruncate(self._file, offset)

    def _parse(self, number: int, offset: int, data: bytes) -> Line:
        try:
            answer = json.loads(data)
            id, error = answer["custom_id"], answer["error"]
            digest = answer["pixedge"][SETTINGS]
            if not isinstance(id, str) or not isinstance(digest, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UsageError(
                f"line {number} of {self.path} is no answer of pixedge batch; give another --out"
            ) from None
        return Line(offset, len(data) + (not data.endswith(b"\n")), id, digest, error is not None)

    def _rewrite(self, lines: Sequence[Line]) -> None:
        """Write a new file with these lines, in this order, and put it in the old one's place."""
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        placed: dict[str, Line] = {}
        try:
            with open(handle, "wb") as new, open(self._file, "rb", closefd=False) as old:
                for line in lines:
                    old.seek(line.offset)
                    placed[line.id] = Line(new.tell(), line.length, line.id, line.digest, line.failed)
                    _copy(old.read, new.write, line.length)
                new.flush()
                os.fsync(new.fileno())
            os.chmod(name, stat.S_IMODE(os.fstat(self._file).st_mode))
            if os.name == "nt":  # where an open file cannot be replaced
                os.close(self._file)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        old_file, self._lines = self._file, placed
        self._file = self._open()
        if os.name != "nt":
            os.close(old_file)


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], int], length: int) -> None:
    while length > 0 and (data := read(min(length, _COPY))):
        write(data)
        length -= len(data)


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _lock(file: int) -> bool:
    """Keep other programs from writing, as far as the system knows of such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True
