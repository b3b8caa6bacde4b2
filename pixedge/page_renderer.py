"""Renders the pages of one PDF; run by `pixedge.documents` as a process of its own.

The document's bytes come on standard input, the task as JSON in the only argument. Pages go to standard
output as they are ready, each behind a `PAGE_HEADER`; a sentence for the user in the place of a page.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

from PIL import Image

from pixedge.documents import PAGE_HEADER, PageScale, choose_pages
from pixedge.errors import ImageError, PixedgeError, UsageError
from pixedge.image import ImageLimits

_PASSWORD_NEEDED = 4  # FPDF_ERR_PASSWORD in pdfium's fpdfview.h

# For the process: the largest document and picture that the default limits allow take about 1 GB.
_MEMORY = 4 << 30


def render_pages(
    data: bytes, name: str, pages: str | None, scale: PageScale, limits: ImageLimits
) -> Iterator[Image.Image]:
    """Yield the chosen pages over white, in RGB, with annotations and filled-in fields.

    Raises ImageError and UsageError as `pixedge.documents.read_document` says.
    """
    with contextlib.closing(open_document(data, name)) as document:
        for number in choose_pages(name, len(document), pages, limits.max_images):
            yield _page(document, number, name, scale, limits)


def open_document(data: bytes, name: str) -> Any:
    """Open a PDF with its forms; raises ImageError."""
    import pypdfium2

    # It remarks on forms of a kind (XFA) that it cannot draw; the pages are drawn all the same.
    logging.getLogger("pypdfium2").addHandler(logging.NullHandler())
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PASSWORD_NEEDED:
            raise ImageError(
                f"{name} is encrypted and opens only with a password; save a copy without one and give that"
            ) from error
        if not error.err_code:
            raise ImageError(f"{name} is a PDF without pages; give another file") from error
        raise ImageError(
            f"{name} cannot be opened as PDF ({_reason(error)}); copy or download it again"
        ) from error
    with contextlib.suppress(pypdfium2.PdfiumError):
        document.init_forms()  # without it the fields that somebody filled in stay blank
    return document


def _page(document: Any, number: int, name: str, scale: PageScale, limits: ImageLimits) -> Image.Image:
    import pypdfium2

    where = f"page {number} of {name}"
    try:
        page = document[number - 1]
        picture = _render(page, where, scale, limits)
        page.close()
    except (pypdfium2.PdfiumError, MemoryError) as error:
        raise ImageError(
            f"{where} cannot be rendered ({_reason(error)}); leave the page out, or save the document again "
            "with another program"
        ) from error
    return picture


def _render(page: Any, where: str, scale: PageScale, limits: ImageLimits) -> Image.Image:
    width, height = page.get_size()  # points, after the page's own rotation
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ImageError(f"{where} has no size ({width:g} x {height:g} points); leave the page out")
    across, down = scale.pixels(width, height)
    if across * down > limits.max_pixels:
        raise ImageError(
            f"{where} would have {across * down:,} pixels ({across} x {down}) and the limit is "
            f"{limits.max_pixels:,}; give a lower --dpi"
        )
    # pypdfium2 rounds both sides up, so the factor is a hair less than the scale.
    factor = max((across - 0.5) / width, (down - 0.5) / height)
    bitmap = page.render(scale=factor, rev_byteorder=True)
    picture: Image.Image = bitmap.to_pil()
    picture = picture.copy() if picture.mode == "RGB" else picture.convert("RGB")
    bitmap.close()  # the copy's memory is its own
    if max(picture.size) > scale.longest:
        picture.thumbnail((scale.longest, scale.longest), Image.Resampling.LANCZOS, reducing_gap=None)
    return picture


def _reason(error: Exception) -> str:
    """Give pdfium's own words, without those that pypdfium2 puts around them."""
    inner = re.search(r"PDFium: (.+?)\)*\.?$", str(error))
    return inner[1] if inner else " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows, or a lower limit is set
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def main() -> None:
    """Do the task of the command line."""
    task = json.loads(sys.argv[1])
    data = sys.stdin.buffer.read(task["bytes"])
    _limit_memory()
    out = sys.stdout.buffer
    try:
        if len(data) < task["bytes"]:
            return  # who asked is gone
        if task["scale"] is None:
            with contextlib.closing(open_document(data, task["name"])) as document:
                out.write(PAGE_HEADER.pack(b"N", len(document), 0))
                out.flush()
            return
        scale, limits = PageScale(**task["scale"]), ImageLimits(**task["limits"])
        for picture in render_pages(data, task["name"], task["pages"], scale, limits):
            out.write(PAGE_HEADER.pack(b"P", *picture.size))
            out.write(picture.tobytes())
            out.flush()
    except PixedgeError as error:
        sentence = str(error).encode("utf-8", errors="replace")
        out.write(PAGE_HEADER.pack(b"U" if isinstance(error, UsageError) else b"E", len(sentence), 0))
        out.write(sentence)
        out.flush()


if __name__ == "__main__":
    main()
