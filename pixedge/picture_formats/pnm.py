"""PNM: PBM, PGM and PPM, plain and binary, and PFM, read with numpy.

Pillow reads the plain forms and other maxima than 255 sample by sample in Python.
Formats: https://netpbm.sourceforge.net/doc/ and, for PFM, https://www.pauldebevec.com/Research/HDR/PFM/.
"""

import re

import numpy as np
from PIL import Image

from pixedge.picture_formats import Allow, Decoded, EndOfFileError
from pixedge.picture_formats.grey import to_8_bits

_TOKEN = re.compile(rb"(?:[ \t\r\n\v\f]|#[^\r\n]{0,1000}[\r\n])*([^ \t\r\n\v\f#]{1,40})")
_COMMENT = re.compile(rb"#[^\r\n]*")
_SPACES = b" \t\r\n\v\f"


def decode(data: bytes, allow: Allow) -> Decoded:
    """Decode the first picture of the file."""
    kind, at = data[:2], 2
    fields: list[float] = []
    for _ in range(2 if kind in (b"P1", b"P4") else 3):
        found = _TOKEN.match(data, at)
        if found is None:
            raise EndOfFileError
        fields.append(float(found[1]) if kind in (b"Pf", b"PF") else int(found[1]))
        at = found.end()
    at += 1  # one blank, behind which the pixels of the binary forms begin
    width, height = int(fields[0]), int(fields[1])
    if width < 1 or height < 1:
        raise ValueError(f"{width} x {height} pixels")
    allow(width, height)
    shape = (height, width, 3) if kind in (b"P3", b"P6", b"PF") else (height, width)
    if kind in (b"Pf", b"PF"):
        return Decoded(_floats(data, at, shape, fields[2]))
    if kind in (b"P1", b"P4"):
        black = _plain_bits(data, at, shape) if kind == b"P1" else _bits(data, at, shape)
        return Decoded(Image.fromarray(np.where(black, np.uint8(0), np.uint8(255))))
    most = int(fields[2])
    if not 0 < most < 65536:
        raise ValueError(f"a greatest value of {most}")
    samples = _plain(data, at, shape) if kind in (b"P2", b"P3") else _binary(data, at, shape, most)
    if most != 255:
        table = np.rint(np.minimum(np.arange(65536), most) * (255 / most)).astype(np.uint8)
        samples = table[samples]
    return Decoded(Image.fromarray(samples.astype(np.uint8, copy=False)))


def _binary(data: bytes, at: int, shape: tuple[int, ...], most: int) -> np.ndarray:
    return _taken(data, at, shape, np.dtype("u1" if most < 256 else ">u2"))


def _taken(data: bytes, at: int, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
    count = int(np.prod(shape))
    if len(data) - at < count * kind.itemsize:
        raise EndOfFileError
    return np.frombuffer(data, kind, count, at).reshape(shape)


def _bits(data: bytes, at: int, shape: tuple[int, ...]) -> np.ndarray:
    rows = _taken(data, at, (shape[0], (shape[1] + 7) // 8), np.dtype("u1"))
    return np.unpackbits(rows, axis=1, count=shape[1])


def _plain_bits(data: bytes, at: int, shape: tuple[int, ...]) -> np.ndarray:
    """Read digits 0 and 1, between which there need be no blank."""
    digits = _COMMENT.sub(b"", data[at:]).translate(None, _SPACES)[: shape[0] * shape[1]]
    values = np.frombuffer(digits, np.uint8) - ord("0")
    if len(values) and values.max() > 1:
        raise ValueError("a digit other than 0 and 1")
    if len(values) < shape[0] * shape[1]:
        raise EndOfFileError
    return values.reshape(shape)


def _plain(data: bytes, at: int, shape: tuple[int, ...]) -> np.ndarray:
    """Read numbers with blanks between them."""
    text = _COMMENT.sub(b"", data[at:])
    if strange := text.translate(None, _SPACES + b"0123456789")[:1]:
        # another picture may follow, and is not read
        text = text[: text.index(strange)]
    count = int(np.prod(shape))
    # told how many to read, numpy does not say when there are fewer
    values = np.fromstring(text, np.int32, sep=" ") if text.strip() else np.empty(0)
    if len(values) < count:
        raise EndOfFileError
    return np.minimum(values[:count], 65535).astype(np.uint16).reshape(shape)


def _floats(data: bytes, at: int, shape: tuple[int, ...], scale: float) -> Image.Image:
    """Read floats, bottom row first; the sign of the scale tells their byte order."""
    values = _taken(data, at, shape, np.dtype("<f4" if scale < 0 else ">f4"))[::-1]
    return Image.fromarray(to_8_bits(values))
