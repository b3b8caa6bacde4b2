"""The picture formats that pixedge reads: one list for every door, and one module that decodes each.

Nothing heavy is imported here, so that the command line can ask for a file's ending at no cost. A format's
module has one function::

    decode(data: bytes, allow: Allow) -> Decoded

It reads the size from the header and calls ``allow(width, height)``, which raises or makes room, before it
decodes a pixel. It hands the decoder nothing but what the picture needs: what stands beside the picture
(profiles, thumbnails, comments, previews) is stepped over and never read, except for EXIF's orientation.
What it does is linear in the file's bytes and in the picture's pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

Allow: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class PictureFormat:
    """A format: its name in sentences, the endings of its files' names, its media types."""

    name: str
    endings: tuple[str, ...]
    media_types: tuple[str, ...]


FORMATS = (
    PictureFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), ("image/jpeg",)),
    PictureFormat("PNG", (".png", ".apng"), ("image/png", "image/apng")),
    PictureFormat("WebP", (".webp",), ("image/webp",)),
    PictureFormat("GIF", (".gif",), ("image/gif",)),
    PictureFormat("TIFF", (".tif", ".tiff"), ("image/tiff",)),
    PictureFormat("BMP", (".bmp", ".dib"), ("image/bmp", "image/x-ms-bmp")),
    PictureFormat("AVIF", (".avif",), ("image/avif",)),
    PictureFormat("HEIC", (".heic", ".heif", ".hif"), ("image/heic", "image/heif")),
    PictureFormat(
        "PNM",
        (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        (
            *("image/x-portable-anymap", "image/x-portable-bitmap"),
            *("image/x-portable-graymap", "image/x-portable-pixmap"),
        ),
    ),
)

ENDINGS = frozenset(ending for each in FORMATS for ending in each.endings)
"""The endings of picture files' names, in lower case and with their dot."""

READABLE = ", ".join(each.name for each in FORMATS[:-1]) + f" or {FORMATS[-1].name}"
"""All formats as a sentence names them."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNM_STARTS = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF")


def detect(data: bytes) -> str | None:
    """Name the format by the first bytes; a file's name says nothing."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in _TIFF_STARTS:
        return "TIFF"
    if data[:2] == b"BM":
        return "BMP"
    if data[:2] in _PNM_STARTS and data[2:3] in (b" ", b"\t", b"\r", b"\n", b"#"):
        return "PNM"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        names = {data[8:12], *(brands[at : at + 4] for at in range(8, len(brands), 4))}
        if names & {b"avif", b"avis"}:
            return "AVIF"
        if data[8:12] in _HEIC_BRANDS:
            return "HEIC"
    return None


@dataclass(frozen=True)
class Decoded:
    """What a file holds: a decoded picture in any of Pillow's modes, and how it is to be turned.

    orientation: 1 to 8 as EXIF counts them. inverted: whether the least value is white. stored: how a PNG
    stores its samples, for the transparent colour's sake.
    """

    image: Image.Image
    orientation: int = 1
    stored: object = None


class EndOfFileError(Exception):
    """The file ends before the picture does."""


class WholeFile(io.BytesIO):
    """A file in memory; reading on at its end is an error, also where Pillow would fill up."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as BytesIO does; raises EndOfFileError where nothing is left."""
        data = super().read(size)
        if not data and size is not None and size > 0:
            raise EndOfFileError
        return data


class UnsupportedError(Exception):
    """The file is whole, but in a form of its format that nothing here decodes; the text says which."""


class TooMuchError(Exception):
    """The file asks for more work than its picture is worth; the text says what of."""
