"""JPEG: tables, frame and scans go to Pillow; application segments and comments are stepped over.

libjpeg fills up what is missing with grey and only remarks on it, which Pillow does not pass on. So a file
that may have lost its end (no end marker, or an even last block) is decoded twice, with different bits behind
its last scan: a picture that is whole comes out the same.
"""

import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, JpegImagePlugin

from pixedge.picture_formats import Allow, Decoded, EndOfFileError, TooMuchError, UnsupportedError
from pixedge.picture_formats.exif import orientation

# Programs write ten or so. Each scan walks the whole picture, so thousands of empty ones in a small file
# would keep the decoder busy for hours.
MOST_SCANS = 100
_MOST_SEGMENTS = 100_000
_MOST_TABLES = 2_000

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _DQT, _DHT, _DRI, _DAC, _DNL = 0xDA, 0xDB, 0xC4, 0xDD, 0xCC, 0xDC
_BASELINE, _EXTENDED, _PROGRESSIVE, _ARITHMETIC = 0xC0, 0xC1, 0xC2, (0xC9, 0xCA)
_FRAMES = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, _DAC}
_OTHER_FORMS = {3: "lossless", 5: "hierarchical", 6: "hierarchical", 7: "hierarchical"}
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# Neither these nor their complements have the byte that begins a marker.
_FILLER = bytes((201 + 167 * index) % 255 for index in range(510))


@dataclass
class _File:
    """The parts of a file that make the picture."""

    parts: list[bytes | memoryview] = field(default_factory=lambda: [_SOI])
    size: tuple[int, int] | None = None
    frame: int = 0
    components: frozenset[int] = frozenset()
    orientation: int = 1
    scans: int = 0
    ended: bool = False
    restart: int = 0
    covered: dict[tuple[int, int], int] = field(default_factory=dict)  # (component, coefficient) -> low bit


def decode(data: bytes, allow: Allow) -> Decoded:
    """Decode the picture, of several in one file the first."""
    file = _read(data, allow)
    if not file.scans or not _all_scans(file):
        raise EndOfFileError
    if file.ended:
        image = _decoded([*file.parts, _EOI])
        whole = file.frame in _ARITHMETIC or not _ends_evenly(image) or _same(image, _filled(file, _FILLER))
    elif file.frame in _ARITHMETIC:  # its encoders leave out zeros at the end, so nothing tells
        raise EndOfFileError
    else:
        image = _filled(file, _FILLER)
        whole = _same(image, _filled(file, bytes(254 - value for value in _FILLER)))
    if not whole:
        raise EndOfFileError
    return Decoded(image, file.orientation)


def _filled(file: _File, filler: bytes) -> Image.Image:
    """Decode with some bytes behind the last scan, and again behind the restart marker due there."""
    return _decoded([*file.parts, filler, bytes([0xFF, 0xD0 + file.restart]), filler, _EOI])


def _read(data: bytes, allow: Allow) -> _File:
    """Walk the segments up to the end marker."""
    file, view, at = _File(), memoryview(data), 2
    tables = 0
    for _ in range(_MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        while 0 <= at < len(data) - 1 and data[at + 1] == 0xFF:
            at += 1
        if at < 0 or at + 1 >= len(data):
            return file
        marker = data[at + 1]
        if marker == _EOI[1]:
            file.ended = True
            return file
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        if at + 4 > len(data):
            return file
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if end > len(data) or end < at + 4:
            raise EndOfFileError
        body = view[at + 4 : end]
        if marker in _FRAMES:
            _read_frame(file, marker, bytes(body), allow)
        elif marker == 0xE1 and file.orientation == 1 and bytes(body[:6]) == b"Exif\0\0":
            file.orientation = orientation(bytes(body))
        if marker in _FRAMES or marker in (_SOS, _DQT, _DHT, _DRI, _DAC) or _tells_colours(marker, body):
            tables += 1
            file.parts.append(view[at:end])
        if marker == _SOS:
            found = _END_OF_SCAN.search(data, end)
            at, end = end, found.start() if found else len(data)
            scan = view[at:end]
            file.parts.append(scan if bytes(scan[-1:]) != b"\xff" else scan[:-1])
            _read_scan(file, bytes(body), scan)
        if file.scans > MOST_SCANS:
            raise TooMuchError(f"more than {MOST_SCANS} JPEG scans")
        if tables > _MOST_TABLES:
            raise TooMuchError(f"more than {_MOST_TABLES:,} JPEG tables")
        at = end
    raise TooMuchError(f"more than {_MOST_SEGMENTS:,} JPEG segments")


def _tells_colours(marker: int, body: memoryview) -> bool:
    """Whether a segment is JFIF's or Adobe's own, by which libjpeg knows what the components are."""
    return (marker == 0xE0 and bytes(body[:5]) == b"JFIF\0" and len(body) == 14) or (
        marker == 0xEE and bytes(body[:5]) == b"Adobe" and len(body) == 12
    )


def _read_frame(file: _File, marker: int, body: bytes, allow: Allow) -> None:
    if file.size is not None:
        raise ValueError("two frames")
    if len(body) < 6:
        raise EndOfFileError
    bits, height, width, count = struct.unpack_from(">BHHB", body)
    allow(width, height)
    form = _OTHER_FORMS.get(marker & 7)
    if form or bits != 8:
        raise UnsupportedError(f"with {bits} bits a sample" if not form else f"in its {form} form")
    if height == 0:
        raise UnsupportedError("that names its height behind the picture")
    file.size, file.frame = (width, height), marker
    file.components = frozenset(body[6 : 6 + 3 * count : 3])


def _read_scan(file: _File, body: bytes, scan: memoryview) -> None:
    file.scans += 1
    count = body[0] if body else 0
    if len(body) < 4 + 2 * count:
        raise EndOfFileError
    first, last, bits = body[1 + 2 * count : 4 + 2 * count]
    if file.frame not in (_PROGRESSIVE, 0xCA):
        first, last, bits = 0, 63, 0
    for component in body[1 : 1 + 2 * count : 2]:
        for coefficient in range(first, min(last, 63) + 1):
            file.covered[component, coefficient] = bits & 15
    restarts = _RESTART.findall(scan[-(1 << 20) :])
    file.restart = restarts[-1][1] - 0xD0 + 1 & 7 if restarts else 0


def _all_scans(file: _File) -> bool:
    """Whether the scans bring every coefficient of every component to its last bit."""
    if file.ended:  # some programs leave out what would be zero
        return True
    return all(file.covered.get((each, at)) == 0 for each in file.components for at in range(64))


def _decoded(parts: Sequence[bytes | memoryview]) -> Image.Image:
    with JpegImagePlugin.JpegImageFile(io.BytesIO(b"".join(parts))) as image:
        image.load()
        return image


def _ends_evenly(image: Image.Image) -> bool:
    """Whether the last blocks have one colour, as where libjpeg has filled up."""
    width, height = image.size
    corner = image.crop((max(width - 32, 0), max(height - 8, 0), width, height))
    return all(low == high for low, high in _extrema(corner))


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    return [band.getextrema() for band in image.split()]  # type: ignore[misc]


def _same(image: Image.Image, other: Image.Image) -> bool:
    rows = max(1, (1 << 22) // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        if not np.array_equal(np.asarray(image.crop(box)), np.asarray(other.crop(box))):
            return False
    return True
