"""AVIF and HEIC, which are one container: metadata is renamed to what no decoder looks at.

Both turn the picture as the container's own properties say; EXIF's orientation is for information alone
(ISO/IEC 23008-12), so the block that holds it is not needed.
"""

import importlib
import io
from typing import Any

from PIL import AvifImagePlugin

from pixedge.picture_formats import Allow, Decoded, EndOfFileError

_MOST_ITEMS = 10_000
_HOLDING_THE_PICTURE = (b"meta", b"mdat", b"moov", b"iinf")


class MissingPackageError(Exception):
    """The package that decodes HEIC is not installed."""


def decode_avif(data: bytes, allow: Allow) -> Decoded:
    """Decode an AVIF picture, of a sequence the first."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with AvifImagePlugin.AvifImageFile(io.BytesIO(_without_metadata(data))) as image:
        allow(*image.size)
        image.load()
        image._decoder = None  # it holds the frame
        return Decoded(image, int(image.getexif().get(0x0112, 1)))


def decode_heic(data: bytes, allow: Allow) -> Decoded:
    """Decode the primary picture of a HEIC file."""
    try:
        heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        raise MissingPackageError from None
    heif.options.DECODE_THREADS = 1
    heif.options.THUMBNAILS = False
    with heif.HeifImageFile(io.BytesIO(_without_metadata(data))) as image:
        allow(*image.size)
        image.load()
        return Decoded(image)


def _without_metadata(data: bytes) -> bytes:
    """Rename the items that hold EXIF and XMP, in the item list of the meta box."""
    result = bytearray(data)
    for start, end in _boxes(data, 0, len(data), b"meta"):
        for inner, stop in _boxes(data, start + 4, end, b"iinf"):
            entries = inner + (6 if data[inner : inner + 1] == b"\0" else 8)
            for entry, last in _boxes(data, entries, stop, b"infe"):
                at = entry + (8 if data[entry : entry + 1] == b"\2" else 10)
                if data[at : at + 4] in (b"Exif", b"mime") and at + 4 <= last:
                    result[at : at + 4] = b"skip"
    return bytes(result)


def _boxes(data: bytes, at: int, end: int, name: bytes) -> list[tuple[int, int]]:
    """Return where the contents of boxes of one name begin and end, in a row of boxes."""
    found = []
    for _ in range(_MOST_ITEMS):
        if at + 8 > end:
            break
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at
        if size < head:
            break
        if at + size > end:
            if data[at + 4 : at + 8] in _HOLDING_THE_PICTURE:
                raise EndOfFileError
            break  # what follows the last box is none
        if data[at + 4 : at + 8] == name:
            found.append((at + head, at + size))
        at += size
    return found
