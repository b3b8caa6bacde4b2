"""WebP (RFC 9649): the chunks of the picture, or of an animation's first frame, go to Pillow."""

import io
import struct

from PIL import WebPImagePlugin

from pixedge.picture_formats import Allow, Decoded, EndOfFileError, TooMuchError
from pixedge.picture_formats.exif import orientation

_MOST_CHUNKS = 10_000
_ANIMATION, _EXIF, _ALPHA = 0x02, 0x08, 0x10


def decode(data: bytes, allow: Allow) -> Decoded:
    """Decode the picture, or the first frame on its canvas."""
    chunks, turned = _chunks(data)
    if not chunks:
        raise EndOfFileError
    names = [name for name, _ in chunks]
    extended = dict(chunks).get(b"VP8X")
    if extended is not None:
        width, height = (int.from_bytes(extended[at : at + 3], "little") + 1 for at in (4, 7))
        allow(width, height)
        flags = extended[0] & (_ANIMATION | _ALPHA)
        chunks = [(b"VP8X", bytes([flags]) + bytes(extended[1:10])), *chunks[1:]]
        # EXIF, which says how the picture stands, comes last
        if extended[0] & _EXIF and turned is None and len(data) < struct.unpack_from("<I", data, 4)[0] + 8:
            raise EndOfFileError
    for name, body in chunks:
        if name in (b"VP8 ", b"VP8L"):
            allow(*_size(name, body))
        if name == b"ANMF":  # the frame's own header may claim another size than the canvas has
            at = 16
            while at + 8 <= len(body):
                length = int.from_bytes(body[at + 4 : at + 8], "little")
                if bytes(body[at : at + 4]) in (b"VP8 ", b"VP8L"):
                    allow(*_size(bytes(body[at : at + 4]), body[at + 8 : at + 18]))
                at += 8 + length + length % 2
    if not {b"VP8 ", b"VP8L", b"ANMF"} & set(names):
        raise EndOfFileError
    parts: list[bytes | memoryview] = [b"WEBP"]
    for name, body in chunks:
        parts += [name + struct.pack("<I", len(body)), body, bytes(len(body) % 2)]
    parts = [b"RIFF" + struct.pack("<I", sum(map(len, parts))), *parts]
    with WebPImagePlugin.WebPImageFile(io.BytesIO(b"".join(parts))) as image:
        image.load()
        image._decoder = None  # it holds the canvas twice
        return Decoded(image, turned or 1)


def _chunks(data: bytes) -> tuple[list[tuple[bytes, bytes | memoryview]], int | None]:
    """Return the chunks that make the picture, up to the first frame, and the orientation if one is told."""
    found: list[tuple[bytes, bytes | memoryview]] = []
    view = memoryview(data)
    at = 12
    turned: int | None = None
    ended = False
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return found, turned
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF" and at + 8 + length <= len(data):
            turned = orientation(data[at + 8 : at + 8 + min(length, 1 << 16)])
        elif name in (b"VP8X", b"ALPH", b"ANIM", b"VP8 ", b"VP8L", b"ANMF") and not ended:
            if at + 8 + length > len(data) or (name == b"VP8X" and length < 10):
                raise EndOfFileError
            found.append((name, view[at + 8 : at + 8 + length]))
            ended = name in (b"VP8 ", b"VP8L", b"ANMF")
        at += 8 + length + length % 2
    raise TooMuchError(f"more than {_MOST_CHUNKS:,} chunks")


def _size(name: bytes, body: bytes | memoryview) -> tuple[int, int]:
    """Return the size that a frame's own header names."""
    if len(body) < 10:
        raise EndOfFileError
    if name == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF
