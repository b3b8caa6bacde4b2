"""PDF documents from strangers: the pages that were asked for, each as an RGB picture, under limits.

    bytes ── size cap ── (another process: open ── count cap ── pixel cap ── render ── reduce) ── pictures

pdfium, which pypdfium2 (the optional extra ``pdf``) brings, is a large C++ library: a malicious file may keep
it busy for days, eat the memory, or crash it. So it runs in a process of its own (`pixedge.page_renderer`),
with a limit on its memory and on the time that a page may take; that process gets the document's bytes and
never a path. A page is brought to the size that the model takes before the next one is rendered, so that a
long document costs no more memory than as many small pictures. Everything that goes wrong with a document is
an `ImageError` that names it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, BinaryIO

from PIL import Image

from pixedge.errors import ImageError, UsageError
from pixedge.image import ImageLimits, read_bytes
from pixedge.own_process import start_module

SECONDS_A_PAGE = 60.0
"""The longest that a page may take, opening the document included."""

PAGE_HEADER = struct.Struct("<cII")
"""What stands before a page: b"P", width, height; a count: b"N"; a sentence: b"E" or b"U", its bytes."""

_POINTS_PER_INCH = 72
_WITH_PAGES = re.compile(r"(.+\.pdf)\[([^\[\]]*)\]", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"(\d{1,9})?(-)?(\d{1,9})?")


@dataclass(frozen=True)
class PageScale:
    """How large a page becomes.

    longest: pixels of the longer side that the model takes. dpi: dots per inch to render at; the picture is
    then reduced to ``longest``, with averaging, where it is larger. None renders straight to ``longest``: at
    the very size at which the encoder looks at it, text is sharper and costs less than when a larger picture
    is made smaller afterwards.
    """

    longest: int
    dpi: int | None = None

    def pixels(self, width: float, height: float) -> tuple[int, int]:
        """Return the size to render at, in pixels, of a page of width x height points."""
        scale = self.dpi / _POINTS_PER_INCH if self.dpi else self.longest / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))


def split_pages(name: str) -> tuple[str, str | None]:
    """Part ``report.pdf[2-5]`` into the file's name and the pages; None where no pages are named.

    >>> split_pages("report.pdf[1,4-6]"), split_pages("page[1-3].png")
    (('report.pdf', '1,4-6'), ('page[1-3].png', None))
    """
    found = _WITH_PAGES.fullmatch(name)
    return (found[1], found[2]) if found else (name, None)


def check_pages(name: str, pages: str) -> None:
    """Raise UsageError where ``pages`` names no pages, whatever the document holds."""
    for part in pages.split(","):
        found = _RANGE.fullmatch(part.strip())
        first, to, last = found.groups() if found else (None, None, None)
        if (first is None and last is None) or (None not in (first, last) and to is None):
            raise UsageError(
                f"{name}[{pages}] does not name pages; write [3], [2-5], [1,4-6], or [9-] for page 9 and on"
            )
        numbers = [int(number) for number in (first, last) if number is not None]
        if 0 in numbers:
            raise UsageError(f"{name}[{pages}] names page 0; pages count from 1")
        if numbers != sorted(numbers):
            raise UsageError(f"{name}[{pages}] counts backwards; write the lower page first")


def choose_pages(name: str, count: int, pages: str | None, most: int) -> list[int]:
    """Return the page numbers, from 1, that ``pages`` names of ``count``, in its order; all of them for None.

    pages: numbers and ranges with commas, as "3", "2-5", "1,4-6", "9-" (to the end) or "-2" (from the
    beginning). Raises UsageError where that is not pages, ImageError for a page that is not there and
    for more pages than ``most``.
    """
    if pages is not None:
        check_pages(name, pages)
    chosen: list[int] = []
    for part in ["-"] if pages is None else pages.split(","):
        first, dash, last = part.strip().partition("-")
        start = int(first or 1)
        end = start if not dash else int(last or max(start, count))
        if end > count:
            raise ImageError(
                f"{name} has {_say_pages(count)}, so it has no page {end:,}; name pages from 1 to {count}"
            )
        chosen.extend(range(start, end + 1))
    if len(chosen) > most:
        raise ImageError(
            f"{name} would give {_say_pages(len(chosen))} and the limit is {most}; name fewer, as in "
            f"{name}[1-{most}]"
        )
    return chosen


def read_document(
    source: bytes | Path | BinaryIO,
    name: str,
    limits: ImageLimits,
    scale: PageScale,
    pages: str | None = None,
    seconds: float = SECONDS_A_PAGE,
) -> Iterator[Image.Image]:
    """Yield the pages of a PDF as pictures, one after the other as they are asked for.

    source, name and limits as `read_image` has them; pages as `choose_pages` has them. Filled-in form fields
    and annotations are drawn. Raises ImageError for a document that is encrypted, empty, damaged, has more
    pages than limits.max_images or pages with more pixels than limits.max_pixels, takes more than ``seconds``
    a page, crashes the library, and where the extra is missing; UsageError for pages that are named wrongly.
    """
    if pages is not None:
        check_pages(name, pages)
    for answer in _render(read_bytes(source, name, limits), name, limits, scale, pages, seconds):
        assert isinstance(answer, Image.Image)
        yield answer


def count_pages(
    source: bytes | Path | BinaryIO, name: str, limits: ImageLimits, seconds: float = SECONDS_A_PAGE
) -> int:
    """Return how many pages a PDF has; arguments and errors are those of read_document."""
    for answer in _render(read_bytes(source, name, limits), name, limits, None, None, seconds):
        assert isinstance(answer, int)
        return answer
    raise ImageError(f"{name} does not tell its pages; save it again with another program")


def _render(
    data: bytes,
    name: str,
    limits: ImageLimits,
    scale: PageScale | None,
    pages: str | None,
    seconds: float,
) -> Iterator[Image.Image | int]:
    """Have the other process render pages, or count them without a scale."""
    if not name.isprintable():
        name = ascii(name)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); give a PDF")
    if importlib.util.find_spec("pypdfium2") is None:
        raise ImageError(f"{name} is a PDF, which needs an extra package; run: pip install 'pixedge[pdf]'")
    task = {
        "name": name,
        "pages": pages,
        "limits": asdict(limits),
        "scale": None if scale is None else asdict(scale),
        "bytes": len(data),
    }
    with (
        start_module(
            "pixedge.page_renderer",
            json.dumps(task),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as renderer,
        _Killer(renderer) as killer,
    ):
        assert renderer.stdin is not None and renderer.stdout is not None
        killer.allow(seconds)
        with contextlib.suppress(BrokenPipeError):  # it is gone, and what it said is read below
            renderer.stdin.write(data)
        with contextlib.suppress(BrokenPipeError):
            renderer.stdin.close()
        while (answer := _next_answer(renderer.stdout)) is not None:
            killer.allow(None)
            yield answer
            killer.allow(seconds)
        if renderer.wait() == 0:
            return
    if killer.killed:
        raise ImageError(f"{name} took more than {seconds:g} s for a page; leave that page out")
    raise ImageError(
        f"{name} cannot be rendered (the PDF library crashed or ran out of memory); leave it out, or save it "
        "again with another program"
    )


class _Killer:
    """Ends a process that takes longer than it is allowed to, and in any case when the block is left."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.killed = False
        self._process = process
        self._timer: threading.Timer | None = None

    def allow(self, seconds: float | None) -> None:
        """Let the process take so many seconds from now; None is any time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = threading.Timer(seconds, self._kill)
            self._timer.daemon = True
            self._timer.start()

    def _kill(self) -> None:
        self.killed = True
        self._process.kill()

    def __enter__(self) -> _Killer:
        return self

    def __exit__(self, *_: object) -> None:
        self.allow(None)
        self._process.kill()  # nothing where it has ended


def _next_answer(stream: IO[bytes]) -> Image.Image | int | None:
    """Read the next page, or the count; None at the end, also where it comes too early."""
    header = stream.read(PAGE_HEADER.size)
    if len(header) < PAGE_HEADER.size:
        return None
    kind, width, height = PAGE_HEADER.unpack(header)
    if kind == b"N":
        return int(width)
    if kind != b"P":
        sentence = stream.read(width).decode("utf-8")
        raise UsageError(sentence) if kind == b"U" else ImageError(sentence)
    pixels = stream.read(width * height * 3)
    if len(pixels) < width * height * 3:
        return None
    return Image.frombytes("RGB", (width, height), pixels)


def _say_pages(count: int) -> str:
    return "1 page" if count == 1 else f"{count:,} pages"
