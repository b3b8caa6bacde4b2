"""PNG: the chunks that hold the picture go to Pillow, all others are stepped over."""

import io
import struct
import zlib

from PIL import PngImagePlugin

from pixedge.picture_formats import Allow, Decoded, EndOfFileError, TooMuchError, UnsupportedError
from pixedge.picture_formats.exif import orientation

# libpng writes a chunk for 8 KiB of pixels, so 64 MB make 8,192.
_MOST_CHUNKS = 100_000


def decode(data: bytes, allow: Allow) -> Decoded:
    """Decode the still picture; of an animation that is the default image."""
    at, turned = 8, 1
    head: list[bytes] = []
    pixels: list[memoryview] = []
    view = memoryview(data)
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            break
        length, name = struct.unpack_from(">I4s", data, at)
        body = view[at + 8 : at + 8 + length]
        whole = len(view) >= at + 12 + length
        at += 12 + length
        if name == b"IEND":
            break
        if not head and name != b"IHDR":
            raise ValueError("the first chunk is not IHDR")
        if name == b"IDAT":
            if whole:
                _check(name, body, view, at)
            pixels.append(body)  # of a last chunk that is cut, what is there
        elif name == b"eXIf" and whole:
            turned = orientation(bytes(body[: 1 << 16]))
        elif name in (b"IHDR", b"PLTE", b"tRNS"):
            if not whole:
                raise EndOfFileError
            # libpng, too, leaves out an ancillary chunk whose checksum is wrong
            if name != b"tRNS" or zlib.crc32(body, zlib.crc32(name)) == _stored(view, at):
                _check(name, body, view, at)
                if name == b"IHDR":
                    allow(*struct.unpack_from(">II", body))
                head.append(_chunk(name, body))
        elif not name[0] & 0x20 and whole:
            raise UnsupportedError(f"with the chunk {name.decode('latin-1')!a}")
    else:
        raise TooMuchError(f"more than {_MOST_CHUNKS:,} chunks")
    if not pixels:
        raise EndOfFileError
    file = [data[:8], *head, _chunk(b"IDAT", b"".join(pixels)), _chunk(b"IEND", b"")]
    with PngImagePlugin.PngImageFile(io.BytesIO(b"".join(file))) as image:
        stored = image.tile[0].args if image.tile else None
        try:
            image.load()
        except OSError as error:
            if "truncated" in str(error):
                raise EndOfFileError from None
            raise
        return Decoded(image.copy() if image.is_animated else image, turned, stored)


def _stored(view: memoryview, end: int) -> int:
    return int.from_bytes(view[end - 4 : end], "big")


def _check(name: bytes, body: memoryview, view: memoryview, end: int) -> None:
    if zlib.crc32(body, zlib.crc32(name)) != _stored(view, end):
        raise ValueError(f"wrong checksum of the chunk {name.decode()}")


def _chunk(name: bytes, body: bytes | memoryview) -> bytes:
    return b"".join(
        (struct.pack(">I4s", len(body), name), body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name))))
    )
