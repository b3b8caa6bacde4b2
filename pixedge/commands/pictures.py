"""The pictures of a command line: --image values to decoded pictures."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pixedge.commands.standard_input import piped_input
from pixedge.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image


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


def read_pictures(sources: Sequence[str]) -> tuple[list["Image.Image"], float]:
    """Decode the pictures that sources name, in their order, with a pattern's files where the pattern stood.

    Returns RGB pictures and the seconds that reading and decoding took, downloads not counted. Raises
    ImageError for the first that cannot be used.
    """
    if not sources:
        return [], 0.0
    from pixedge.fetch import fetch_image
    from pixedge.image import ImageLimits, expand_image_arguments, read_image

    limits = ImageLimits()
    names = expand_image_arguments(sources)
    limits.check_count(len(names))
    pictures: list[Image.Image] = []
    seconds = 0.0
    for name in names:
        source: bytes | BinaryIO | Path = Path(name)
        if is_url(name):
            source = fetch_image(name, limits)
        elif name == "-" and (stream := piped_input()) is not None:
            source, name = stream, "standard input"
        start = time.perf_counter()
        pictures.append(read_image(source, name, limits))
        seconds += time.perf_counter() - start
    return pictures, seconds


def is_url(source: str) -> bool:
    """Whether a value of --image is an http(s) address."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None
