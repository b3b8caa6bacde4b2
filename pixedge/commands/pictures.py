"""The pictures of a command line: --image values to decoded pictures."""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from pixedge.commands import option_values
from pixedge.commands.standard_input import piped_input
from pixedge.errors import ImageError, UsageError
from pixedge.path_patterns import expand_names
from pixedge.terminal import Report, note

if TYPE_CHECKING:
    from PIL import Image

    from pixedge.image import ImageLimits

DPI = click.option(
    "--dpi",
    type=int,
    callback=option_values.count,
    metavar="N",
    help="Dots per inch of PDF pages [what the model takes].",
)


def check_sources(sources: Sequence[str], allow_url: bool) -> None:
    """Refuse what no picture could make right: URLs without leave, standard input twice or from a keyboard.

    Raises UsageError, before any picture is read.
    """
    if not allow_url and (urls := [source for source in sources if is_url(source)]):
        raise UsageError(f"{urls[0]} is on the network; add --allow-url to have it downloaded")
    if "" in sources:
        raise UsageError("--image is empty; give a file, a pattern, - or an address")
    if sources.count("-") > 1:
        raise UsageError("--image - is given twice, but standard input holds one picture; give it once")
    if "-" in sources and piped_input() is None:
        raise UsageError("--image - reads standard input, and nothing is piped into it; pipe a picture in")


def read_pictures(
    sources: Sequence[str],
    dpi: int | None = None,
    longest: Callable[[], int] | None = None,
    report: Report = lambda phase, done, total, detail="": None,
) -> tuple[list["Image.Image"], float]:
    """Decode the pictures that sources name, in their order, with a pattern's files where the pattern stood.

    A PDF counts as one picture a page; ``report.pdf[2-5]`` takes some of them. dpi: to render pages at; None
    renders them to the size that the model takes. longest: gives that size, the longer side in pixels; it is
    asked where there is a PDF, and 1024 without it. report: told of each source before it is read.

    Returns RGB pictures and the seconds that reading and decoding took, downloads not counted. Raises
    ImageError for the first that cannot be used, and UsageError for pages that are named wrongly and for a
    dpi without a PDF.
    """
    if not sources:
        check_dpi(dpi, documents=0)
        return [], 0.0
    from pixedge.image import ImageLimits

    limits = ImageLimits()
    names = expand_sources(sources)
    limits.check_count(len(names))
    pictures: list[Image.Image] = []
    seconds, documents = 0.0, 0
    for index, name in enumerate(names):
        report("reading", index, len(names), name)
        # every source that is still to come holds at least one picture
        room = limits.max_images - len(pictures) - (len(names) - index - 1)
        found = read_source(name, dataclasses.replace(limits, max_images=room), dpi, longest)
        pictures += found.pictures
        seconds += found.seconds
        documents += found.is_document
    check_dpi(dpi, documents)
    return pictures, seconds


@dataclass(frozen=True)
class Found:
    """What one source held: RGB pictures, the seconds of decoding them, whether they are a PDF's pages."""

    pictures: list["Image.Image"]
    seconds: float
    is_document: bool


def read_source(
    name: str, limits: "ImageLimits", dpi: int | None = None, longest: Callable[[], int] | None = None
) -> Found:
    """Decode what one file, address or standard input holds: a picture, or the pages of a PDF.

    name may end in pages, as ``report.pdf[2-5]``, unless there is a file of that name. The other arguments
    and errors are those of read_pictures.
    """
    from pixedge.documents import PageScale, read_document, split_pages
    from pixedge.fetch import fetch_image
    from pixedge.image import is_document, read_bytes, read_image

    name, pages = (name, None) if os.path.lexists(name) else split_pages(name)
    source: bytes | BinaryIO | Path = Path(name)
    if is_url(name):
        source = fetch_image(name, limits)
    elif name == "-" and (stream := piped_input()) is not None:
        source, name = stream, "standard input"
    if not name.isprintable():
        name = ascii(name)
    start = time.perf_counter()
    data = read_bytes(source, name, limits)
    if not is_document(data):
        if pages is not None and data:
            raise ImageError(f"{name} is not a PDF, so it has no pages to choose; leave [{pages}] out")
        picture = read_image(data, name, limits)
        return Found([picture], time.perf_counter() - start, is_document=False)
    scale = PageScale(longest() if longest else 1024, dpi)
    found = list(read_document(data, name, limits, scale, pages))
    return Found(found, time.perf_counter() - start, is_document=True)


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Replace each pattern by the files that it matches; pages behind it go to each of them.

    Matches that are no files, such as named pipes, are left out and noted. Raises ImageError for a pattern
    without a match, UsageError for pages that are named wrongly.
    """
    from pixedge.documents import check_pages, split_pages

    left_out: list[str] = []
    names: list[str] = []
    for source in sources:
        name, pages = (source, None) if os.path.lexists(source) else split_pages(source)
        if pages is not None:
            check_pages(name, pages)
        suffix = "" if pages is None else f"[{pages}]"
        found = expand_names([name], lambda path, what: left_out.append(f"{path}, {what}"))
        names += [f"{each}{suffix}" for each in found]
    note_left_out(left_out)
    return names


def note_left_out(names: Sequence[str]) -> None:
    """Say which names, with what lies there, are left out because no file lies there."""
    if names:
        rest = f"; and {len(names) - 3:,} more" if len(names) > 3 else ""
        note(f"left out: {'; '.join(names[:3])}{rest}")


def check_dpi(dpi: int | None, documents: int) -> None:
    """Refuse --dpi where there was no document: it would be ignored."""
    if dpi is not None and not documents:
        raise UsageError("--dpi is for the pages of a PDF, and none was given; leave it out")


def longest_side(folder: Path, max_image_size: int | None) -> int:
    """Return the longer side in pixels that an exported folder's model takes of a picture, under a cap."""
    from pixedge.artifact import open_artifact

    longest = open_artifact(folder).config.vision.image_size
    return min(longest, max_image_size or longest)


def is_url(source: str) -> bool:
    """Whether a value of --image is an http(s) address."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None
