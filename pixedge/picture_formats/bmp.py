"""BMP: Pillow decodes it; runs of pixels (RLE8, RLE4), for which it has slow Python, are unpacked here."""

import io
import struct

from PIL import BmpImagePlugin

from pixedge.picture_formats import Allow, Decoded, EndOfFileError, TooMuchError, UnsupportedError

_RLE8, _RLE4 = 1, 2


def decode(data: bytes, allow: Allow) -> Decoded:
    """Decode the picture."""
    if len(data) < 26:
        raise EndOfFileError
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = (abs(side) for side in struct.unpack_from("<ii", data, 18))
    allow(width, height)
    if header >= 40 and len(data) >= 54 and width and height:
        (packing,) = struct.unpack_from("<I", data, 30)
        if packing in (_RLE8, _RLE4):
            data = _unpacked(data, header, width, height, packing == _RLE4)
    try:
        with BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as image:
            image.load()
            return Decoded(image)
    except OSError as error:
        if "Unsupported" in str(error):
            raise UnsupportedError(f"({error})") from None
        if "truncated" in str(error).lower():
            raise EndOfFileError from None
        raise


def _unpacked(data: bytes, header: int, width: int, height: int, four_bits: bool) -> bytes:
    """Rewrite a file of runs as one of plain rows, a byte for each pixel."""
    start, bits = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<H", data, 28)[0]
    colours = struct.unpack_from("<I", data, 46)[0] or 1 << bits
    if bits != (4 if four_bits else 8) or colours > 256:
        raise ValueError(f"runs of {bits} bits a pixel with {colours} colours")
    head = bytearray(data[: 14 + header + 4 * colours])
    struct.pack_into("<I", head, 10, len(head))
    struct.pack_into("<HI", head, 28, 8, 0)
    struct.pack_into("<I", head, 46, colours)
    stride = (width + 3) & ~3
    rows = bytearray(stride * height)
    _unpack(data, start, rows, width, height, stride, four_bits)
    return bytes(head + rows)


def _unpack(
    data: bytes, at: int, rows: bytearray, width: int, height: int, stride: int, four_bits: bool
) -> None:
    """Fill rows, bottom first; what no run covers stays 0."""
    if four_bits:
        runs = [bytes([value >> 4, value & 15]) * 128 for value in range(256)]
    else:
        runs = [bytes([value]) * 256 for value in range(256)]
    x = y = 0
    # A code costs about 0.3 µs here: so many take no longer than the picture is worth.
    for _ in range(2_000_000 + width * height // 4):
        if at + 2 > len(data):
            raise EndOfFileError
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            count = min(count, width - x)
            place = y * stride + x
            rows[place : place + count] = runs[value][:count]
            x += count
        elif value == 0:  # the end of a row
            x, y = 0, y + 1
        elif value == 1:  # the end of the picture
            return
        elif value == 2:  # on by so many columns and rows
            if at + 2 > len(data):
                raise EndOfFileError
            x, y = min(x + data[at], width), y + data[at + 1]
            at += 2
        else:
            size = (value + 1) // 2 if four_bits else value
            pixels = data[at : at + size]
            if len(pixels) < size:
                raise EndOfFileError
            at += size + size % 2
            if four_bits:
                pixels = b"".join(runs[pair][:2] for pair in pixels)
            count = min(value, width - x)
            place = y * stride + x
            rows[place : place + count] = pixels[:count]
            x += count
        if y >= height or (y == height - 1 and x >= width):
            return
    raise TooMuchError("too many runs for its size")
