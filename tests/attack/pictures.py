"""Picture files that take far more time or memory than their size lets expect."""

import io
import struct
import zlib

from PIL import Image

from tests.attack.bodies import MIB
from tests.doors import png_chunk, png_of


def saved(size, kind, **options):
    file = io.BytesIO()
    Image.new(options.pop("mode", "RGB"), size, options.pop("colour", 0)).save(file, kind, **options)
    return file.getvalue()


def many_scans(size, count):
    """Repeat the last scan of a progressive JPEG."""
    data = saved(size, "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * count + data[-2:]


def many_segments(kind, payload, count):
    data = saved((64, 64), "JPEG")
    segment = b"\xff" + bytes([kind]) + struct.pack(">H", len(payload) + 2) + payload
    return data[:2] + segment * count + data[2:]


def run_length_bmp(width, height, rows=b""):
    """Give an RLE8 bitmap whose rows are mostly said to be empty."""
    data = rows or b"\0\0" * height + b"\0\1"
    offset = 14 + 40 + 1024
    head = struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return head + info + bytes(1024) + data


def many_frames(size, count):
    frames = [Image.new("L", size, at % 256) for at in range(count)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=1)
    return file.getvalue()


def hostile_pictures():
    """Give name and bytes; a server may refuse each of them, or read it at an ordinary cost."""
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * MIB), 9))
    return {
        "JPEG, 500 scans of 49 megapixels": many_scans((7000, 7000), 500),
        "JPEG, 50,000 scans of a pixel": many_scans((1, 1), 50_000),
        "JPEG, 40,000 Exif segments": many_segments(0xE1, b"Exif\0\0" + bytes(40), 40_000),
        "JPEG, 60,000 profile segments": many_segments(0xE2, b"ICC_PROFILE\0\1\1" + bytes(20), 60_000),
        "JPEG, 100,000 comments": many_segments(0xFE, b"x" * 8, 100_000),
        "BMP, runs over 49 megapixels": run_length_bmp(7000, 7000),
        "BMP, empty rows": run_length_bmp(1, 49_000_000, b"\0\1"),
        "BMP, steps": run_length_bmp(7000, 7000, b"\0\2\1\1" * 14_000),
        "PNG, 36 megapixels": saved((6000, 6000), "PNG", compress_level=1),
        "PNG, says 49 megapixels": png_of(7000, 7000, b"\0"),
        "PNG, says 4 gigapixels": png_of(65_535, 65_535, b"\0"),
        "PNG, text of 64 MiB": png_of(8, 8, bytes(200), text * 20),
        "PNG, 100,000 chunks": png_of(8, 8, bytes(200), png_chunk(b"tEXt", b"a\0b") * 100_000),
        "PNG, rows of one pixel": saved((1, 60_000), "PNG"),
        "GIF, 2,000 frames": many_frames((300, 300), 2_000),
        "GIF, 36 megapixels": saved((6000, 6000), "GIF", mode="P"),
        "TIFF, 36 megapixels": saved((6000, 6000), "TIFF", compression="tiff_lzw"),
        "TIFF, 20,000 strips": saved(
            (60, 20_000), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 1}
        ),
        "WebP, 9 megapixels": saved((3000, 3000), "WebP", quality=1, method=0),
        "zeros": bytes(12 * MIB),
    }
