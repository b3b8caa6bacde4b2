"""Pictures of every format and mode, damaged and hostile files, and pixels equal to the tokenizer's own."""

import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pixedge.config import VisionConfig
from pixedge.errors import ImageError, UsageError
from pixedge.image import (
    ImageLimits,
    image_grid,
    pixel_hash,
    read_image,
    to_pixels,
)
from pixedge.picture_decoder import decode_picture

# Pillow must neither warn about a picture that is read nor about one that is refused.
pytestmark = pytest.mark.filterwarnings("error")

LIMITS = ImageLimits()
WHITE = (255, 255, 255)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data, name="it.png", limits=LIMITS):
    image = read_image(data, name, limits)
    assert image.mode == "RGB"
    assert image.info == {}
    return image


def pixel(data, at=(0, 0)):
    return read(data).getpixel(at)


def refusal(source, name="it.png", limits=LIMITS):
    with pytest.raises(ImageError) as caught:
        read_image(source, name, limits)
    text = str(caught.value)
    assert text.startswith(name)
    assert "\n" not in text
    return text


def picture(width=33, height=21):
    """A colourful picture that no lossless format compresses to nearly nothing."""
    rng = np.random.default_rng(5)
    smooth = np.linspace(0, 200, width * height * 3).reshape(height, width, 3)
    return Image.fromarray((smooth + rng.integers(0, 55, smooth.shape)).astype(np.uint8))


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, rows, *chunks):
    """Lay a PNG out byte by byte, for what Pillow does not write; rows hold the filter bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def tiff(tags, data=b""):
    """Lay out a little-endian TIFF of SHORT and LONG tags whose pixels follow the directory."""
    count = len(tags)
    entries = b""
    for tag, value in sorted(tags.items()):
        entries += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + struct.pack("<I", 0) + data


def strip_tags(width, height, **other):
    offset = 8 + 2 + 12 * (8 + len(other)) + 4
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: offset, 278: height, 279: width * height}
    return tags | {int(tag[1:]): value for tag, value in other.items()}


LOSSLESS = {
    "PNG": {},
    "WebP": {"lossless": True},
    "TIFF": {},
    "TIFF-lzw": {"compression": "tiff_lzw"},
    "TIFF-zip": {"compression": "tiff_adobe_deflate"},
    "BMP": {},
}
LOSSY = {"JPEG": {"quality": 95}, "JPEG-progressive": {"progressive": True, "quality": 95}, "WebP-lossy": {}}
ALL = {
    name: encode(picture(), name.split("-")[0], **options) for name, options in {**LOSSLESS, **LOSSY}.items()
}
ALL["GIF"] = encode(picture().quantize(64), "GIF")


# --- formats and modes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_keep_every_pixel(kind):
    assert np.array_equal(read(ALL[kind]), picture())


@pytest.mark.parametrize("kind", [*LOSSY, "GIF"])
def test_lossy_formats_stay_close(kind):
    difference = np.abs(np.asarray(read(ALL[kind]), int) - np.asarray(picture(), int))
    assert difference.mean() < 25


def test_the_name_of_a_file_does_not_matter():
    assert np.array_equal(read(ALL["PNG"], "photo.jpg"), picture())


def test_animations_give_their_first_frame():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("GIF", "WebP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WebP" else {}
        data = encode(red, kind, save_all=True, append_images=[blue], **options)
        assert pixel(data) == (255, 0, 0), kind


def test_bilevel_grey_and_palette():
    assert pixel(encode(Image.new("1", (3, 3), 1), "PNG")) == WHITE
    assert pixel(encode(Image.new("1", (3, 3), 0), "TIFF", compression="group4")) == (0, 0, 0)
    assert pixel(encode(Image.new("L", (3, 3), 77), "JPEG", quality=100)) == (77, 77, 77)
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert pixel(encode(palette, kind)) == (10, 200, 30), kind


@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF"])
def test_alpha_lies_over_white(kind):
    options = {"lossless": True, "exact": True} if kind == "WebP" else {}
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    result = read(encode(image, kind, **options))
    assert [result.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), WHITE, (127, 127, 127)]


def test_grey_with_alpha_lies_over_white():
    image = Image.new("LA", (2, 1), (9, 255))
    image.putpixel((1, 0), (9, 0))
    result = read(encode(image, "PNG"))
    assert [result.getpixel((x, 0)) for x in range(2)] == [(9, 9, 9), WHITE]


def test_sixteen_bit_alpha_lies_over_white():
    rgba = struct.pack(">4H4H", 65535, 0, 0, 65535, 0, 0, 0, 0)
    grey = struct.pack(">2H2H", 0x8080, 65535, 0, 0)
    assert list(read(png(2, 1, 16, 6, b"\0" + rgba)).tobytes()) == [255, 0, 0, 255, 255, 255]
    assert list(read(png(2, 1, 16, 4, b"\0" + grey)).tobytes()) == [128, 128, 128, 255, 255, 255]


def test_transparent_palette_entries_lie_over_white():
    palette = chunk(b"PLTE", bytes([0, 0, 0, 9, 8, 7, 0, 0, 0]))
    whole = png(3, 1, 8, 3, bytes([0, 0, 1, 2]), palette, chunk(b"tRNS", bytes([0])))
    shares = png(3, 1, 8, 3, bytes([0, 0, 1, 2]), palette, chunk(b"tRNS", bytes([0, 255, 128])))
    assert list(read(whole).tobytes()) == [255, 255, 255, 9, 8, 7, 0, 0, 0]
    assert list(read(shares).tobytes()) == [255, 255, 255, 9, 8, 7, 127, 127, 127]
    gif = Image.new("P", (2, 1), 0)
    gif.putpalette([0, 0, 0, 9, 8, 7])
    gif.putpixel((1, 0), 1)
    assert list(read(encode(gif, "GIF", transparency=0)).tobytes()) == [255, 255, 255, 9, 8, 7]


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "key", "expected"),
    [
        (1, 0, b"\0\x40", struct.pack(">H", 1), [0, 255]),
        (2, 0, b"\0\x60", struct.pack(">H", 2), [85, 255]),
        (4, 0, b"\0\x3a", struct.pack(">H", 10), [51, 255]),
        (8, 0, b"\0\x05\x06", struct.pack(">H", 6), [5, 255]),
        (16, 0, b"\0\x05\x05\x06\x07", struct.pack(">H", 0x0607), [5, 255]),
    ],
)
def test_a_transparent_grey_is_white_at_every_depth(depth, colour, rows, key, expected):
    """Pillow scales samples of 2 and 4 bits but not the transparent value, and clips those of 16 bits."""
    result = read(png(2, 1, depth, colour, rows, chunk(b"tRNS", key)))
    assert np.asarray(result)[0, :, 0].tolist() == expected


def test_a_transparent_colour_is_white():
    rows = b"\0" + bytes([1, 2, 3, 4, 5, 6])
    assert list(read(png(2, 1, 8, 2, rows, chunk(b"tRNS", struct.pack(">3H", 4, 5, 6)))).tobytes()) == [
        *(1, 2, 3),
        *WHITE,
    ]
    deep = b"\0" + struct.pack(">6H", 0x0101, 0x0202, 0x0303, 0x0404, 0x0505, 0x0606)
    key = chunk(b"tRNS", struct.pack(">3H", 0x0404, 0x0505, 0x0606))
    assert list(read(png(2, 1, 16, 2, deep, key)).tobytes()) == [1, 2, 3, *WHITE]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 256 * 4).round().astype(np.uint16).reshape(4, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    for order in ("<u2", ">u2"):
        image = Image.fromarray(values.astype(order))
        for kind, options in (("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})):
            result = np.asarray(read(encode(image, kind, **options)))
            assert np.array_equal(result, np.stack([expected] * 3, -1)), (order, kind, options)


def test_deep_integers_and_floats_are_scaled():
    def grey(values, kind):
        return np.asarray(read(encode(Image.fromarray(np.array([values], kind)), "TIFF")))[0, :, 0].tolist()

    assert grey([0, 100, 255], np.int32) == [0, 100, 255]
    assert grey([0, 257, 65535], np.int32) == [0, 1, 255]
    assert grey([-100, 0, 300], np.int32) == [0, 64, 255]
    assert grey([0, 2**29, 2**31 - 1], np.int32) == [0, 64, 255]
    assert grey([0, 0.25, 1], np.float32) == [0, 64, 255]
    assert grey([0.2, 0.2, 0.2], np.float32) == [51, 51, 51]
    assert grey([-10, 0, 30], np.float32) == [0, 64, 255]
    assert grey([7, 7, 7], np.float32) == [0, 0, 0]
    assert grey([-1e38, 0, 3e38], np.float32) == [0, 64, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_not_numbers_are_refused(value):
    data = encode(Image.fromarray(np.array([[1, value]], np.float32)), "TIFF")
    assert "not numbers" in refusal(data)


def test_cmyk_and_lab():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        red, green, blue = pixel(encode(cmyk, kind))
        assert red > 250 and green < 5 and blue < 5, kind
    lab = encode(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")
    assert min(pixel(lab)) > 245


def test_ycck_jpeg():
    """Adobe's fourth colour space: Pillow writes CMYK inverted, and the marker's last byte makes it YCCK."""
    stored = (100, 128, 128, 255)  # Y, Cb, Cr, and no black in inverted samples
    image = Image.new("CMYK", (16, 16), tuple(255 - value for value in stored))
    data = bytearray(encode(image, "JPEG", quality=100, subsampling=0))
    assert data[data.index(b"Adobe") + 11] == 0
    data[data.index(b"Adobe") + 11] = 2
    assert all(abs(value - 155) <= 2 for value in pixel(bytes(data)))


def test_thin_pictures():
    for size in ((1, 1), (10_000, 1), (1, 10_000)):
        assert read(encode(Image.new("RGB", size, (1, 2, 3)), "PNG")).size == size


# --- orientation -------------------------------------------------------------------------------------------

# Where the corners of the upright picture (red, green / blue, white, two pixels wide each) lie in the file.
CORNERS = {
    1: "RG/BW", 2: "GR/WB", 3: "WB/GR", 4: "BW/RG", 5: "RB/GW", 6: "GW/RB", 7: "WG/BR", 8: "BR/WG",
}  # fmt: skip
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": WHITE}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "TIFF-lzw"])
def test_exif_orientation_is_applied(kind, orientation):
    wide, high = (16, 32) if orientation >= 5 else (32, 16)
    stored = Image.new("RGB", (wide, high))
    for row, letters in enumerate(CORNERS[orientation].split("/")):
        for column, letter in enumerate(letters):
            stored.paste(COLOURS[letter], (column * wide // 2, row * high // 2, wide, high))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WebP": {"lossless": True}}.get(kind, {})
    if kind == "TIFF-lzw":
        options = {"compression": "tiff_lzw"}
    image = read(encode(stored, kind.split("-")[0], exif=exif, **options))
    assert image.size == (32, 16)
    for at, letter in (((2, 2), "R"), ((29, 2), "G"), ((2, 13), "B"), ((29, 13), "W")):
        found = np.asarray(image.getpixel(at), int)
        assert np.abs(found - COLOURS[letter]).max() < 40, (at, letter, found)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_leave_the_picture_as_it_is(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert read(encode(picture(), "PNG", exif=exif)).size == picture().size


@pytest.mark.filterwarnings("default")
def test_damaged_exif_neither_stops_nor_speaks(capfd):
    """Cameras write broken EXIF; Pillow's remarks on it are hidden unless a person has asked for warnings."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\x00\x12\x01\x03\0"
    script = (
        "import io, sys; from PIL import Image; from pixedge.image import read_image, ImageLimits;"
        f"b = io.BytesIO(); Image.new('RGB', (9, 5)).save(b, 'JPEG', exif={exif!r});"
        "print(read_image(b.getvalue(), 'it', ImageLimits()).size)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(9, 5)"
    assert done.stderr == ""


# --- HEIC --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_without_its_package_names_the_extra(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=re.escape("pip install 'pixedge[heic]'")):
        decode_picture(b"\0\0\0\x18ftyp" + brand + b"\0" * 40, "phone.heic", LIMITS)


def test_heic():
    heif = pytest.importorskip("pillow_heif", reason="the heic extra (pillow_heif) is not installed")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    file = heif.from_pillow(Image.new("RGB", (64, 32), (200, 30, 40)))
    file.info["exif"] = exif.tobytes()
    file.save(buffer, quality=95)
    data = buffer.getvalue()
    image = read(data)
    assert image.size == (32, 64)
    assert np.abs(np.asarray(image, int) - (200, 30, 40)).max() < 12
    assert "2,048 pixels" in refusal(data, limits=ImageLimits(max_pixels=2047))
    for cut in (20, len(data) // 2, len(data) - 3):
        refusal(data[:cut])


# --- refusals ----------------------------------------------------------------------------------------------


def test_paths_and_streams(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(ALL["PNG"])
    assert np.array_equal(read_image(path, "a.png", LIMITS), picture())
    assert np.array_equal(read_image(io.BytesIO(ALL["PNG"]), "-", LIMITS), picture())
    with path.open("rb", buffering=0) as raw:
        assert np.array_equal(read_image(raw, "-", LIMITS), picture())


def test_pipes_deliver_in_pieces():
    out, into = os.pipe()

    def write():
        with os.fdopen(into, "wb", buffering=0) as pipe:
            for start in range(0, len(ALL["PNG"]), 100):
                pipe.write(ALL["PNG"][start : start + 100])

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(out, "rb", buffering=0) as pipe:
        assert np.array_equal(read_image(pipe, "-", LIMITS), picture())
    writer.join()


def test_missing_folder_empty_and_forbidden(tmp_path, monkeypatch):
    assert "does not exist" in refusal(tmp_path / "no.png", "no.png")
    assert "is a folder" in refusal(tmp_path, "pics")
    assert "cannot be read" in refusal(Path("a\0b"), "odd")
    assert "is empty (0 bytes)" in refusal(b"")
    (tmp_path / "e.png").write_bytes(b"")
    assert "is empty (0 bytes)" in refusal(tmp_path / "e.png", "e.png")

    def forbid(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbid)
    assert "permission denied" in refusal(tmp_path / "e.png", "e.png")


def test_text_is_not_a_picture(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("Dear diary")
    assert "notes.jpg is not a picture that pixedge can read; give JPEG, PNG" in refusal(path, "notes.jpg")


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"P7\nWIDTH 1\nHEIGHT 1\n",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\1\0\1\0",
    ],
)
def test_other_formats_of_pillow_are_never_tried(data):
    assert "is not a picture that pixedge can read" in refusal(data)


def test_too_many_bytes_names_both_numbers(tmp_path):
    limits = ImageLimits(max_bytes=1000)
    path = tmp_path / "big.png"
    path.write_bytes(bytes(1500))
    assert "1,500 bytes and the limit is 1,000" in refusal(path, "big.png", limits)
    assert "1,500 bytes and the limit is 1,000" in refusal(bytes(1500), "big.png", limits)
    assert "at least 1,001 bytes and the limit is 1,000" in refusal(
        io.BytesIO(bytes(1500)), "big.png", limits
    )
    exact = ImageLimits(max_bytes=len(ALL["PNG"]))
    assert read(ALL["PNG"], limits=exact).size == picture().size
    assert read(io.BytesIO(ALL["PNG"]), limits=exact).size == picture().size


def test_a_stream_is_not_read_past_the_limit():
    class Endless(io.RawIOBase):
        served = 0

        def readable(self):
            return True

        def read(self, size=-1):
            assert size > 0
            Endless.served += size
            return b"x" * size

    refusal(Endless(), "-", ImageLimits(max_bytes=3_000_000))
    assert Endless.served == 3_000_001


def claim(kind, width, height):
    """A small file whose header claims a size."""
    if kind == "PNG":
        return png(width, height, 8, 2, b"\0" * 100)
    if kind == "JPEG":
        data = bytearray(ALL["JPEG"])
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
        return bytes(data)
    if kind == "GIF":
        return ALL["GIF"][:6] + struct.pack("<HH", width, height) + ALL["GIF"][10:]
    if kind == "GIF-frame":
        at = ALL["GIF"].index(b"\x2c\0\0\0\0")
        return ALL["GIF"][: at + 5] + struct.pack("<HH", width, height) + ALL["GIF"][at + 9 :]
    if kind == "BMP":
        return ALL["BMP"][:18] + struct.pack("<ii", width, height) + ALL["BMP"][26:]
    if kind == "TIFF":
        return tiff(strip_tags(width, height), b"\0" * 64)
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size + ALL["WebP"][12:]
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


KINDS = ["PNG", "JPEG", "GIF", "GIF-frame", "BMP", "TIFF", "WebP"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (9_999, 10_002)])
def test_bombs_are_refused_by_their_header(kind, width, height):
    text = refusal(claim(kind, width, height))
    assert f"{width * height:,} pixels ({width} x {height})" in text
    assert re.search(r"the limit is [\d,]+; make the picture smaller", text)


@pytest.mark.parametrize("kind", KINDS)
def test_pillows_own_limit_is_neither_used_nor_changed(kind):
    """9,500 x 10,000 passes our limit, and Pillow would warn of it: only the missing pixels are an error."""
    before = Image.MAX_IMAGE_PIXELS
    if kind == "GIF":  # the screen may be larger than its frame
        assert read(claim(kind, 9_500, 10_000)).size == (9_500, 10_000)
        return
    text = refusal(claim(kind, 9_500, 10_000))
    assert before == Image.MAX_IMAGE_PIXELS
    assert "pixels" not in text


def test_a_tiff_tile_counts_as_pixels():
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 322: 60_000, 323: 60_000, 324: 200, 325: 64}
    assert "60000 x 60000" in refusal(tiff(tags, b"\0" * 300))


def test_jpeg_scans_are_limited():
    at = ALL["JPEG-progressive"].index(b"\xff\xda")
    data = ALL["JPEG-progressive"][:at] + b"\xff\xda\0\x08\1\1\0\1\1\0" * 1000
    assert "more than 100 JPEG scans" in refusal(data)


@pytest.mark.parametrize("kind", ALL)
def test_truncated_files_are_refused(kind, capfd):
    data = ALL[kind]
    whole = len(data)
    cuts = {1, 3, 9, 13, 20, 31, 60, whole // 8, whole // 4, whole // 2, whole * 3 // 4, whole * 9 // 10}
    # what ends these holds no pixels: IEND with checksums, the end marker, the trailer, padding
    unneeded = {"PNG": 22, "JPEG": 2, "JPEG-progressive": 2, "GIF": 2, "BMP": 1}.get(kind, 0)
    for cut in sorted(cuts | {whole - unneeded - 3, whole - unneeded - 1}):
        refusal(data[:cut])
    for cut in range(whole - unneeded + 2, whole):
        assert np.array_equal(read(data[:cut]), read(data)), cut
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ALL)
def test_what_follows_a_picture_is_not_looked_at(kind):
    """Cameras and phones append films and previews to their pictures."""
    for more in (b"\xff\xd9\0\xff\xe1\xff\xff", b"RIFF\xff\xff\xff\xffWEBP", os.urandom(5000), ALL[kind]):
        assert np.array_equal(read(ALL[kind] + more), read(ALL[kind]))


def test_truncation_is_called_by_its_name():
    data = ALL["JPEG"]
    text = refusal(data[: len(data) // 2], "cat.jpg")
    assert (
        text
        == f"cat.jpg is truncated: the JPEG ends after {len(data) // 2:,} bytes; copy or download it again"
    )


def test_damage_is_called_by_its_name():
    data = bytearray(ALL["PNG"])
    data[len(data) // 2] ^= 0xFF
    assert "cannot be decoded as PNG (" in refusal(bytes(data))


def test_names_cannot_break_the_sentence():
    with pytest.raises(ImageError) as caught:
        read_image(b"", "a\n\x1b[31mb.png", LIMITS)
    assert str(caught.value).startswith(r"'a\n\x1b[31mb.png' is empty")


def test_count():
    LIMITS.check_count(64)
    with pytest.raises(ImageError, match="65 pictures were given and the limit is 64"):
        LIMITS.check_count(65)


SMALL = ImageLimits(max_bytes=1 << 20, max_pixels=1_000_000)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.filterwarnings("default")
@FUZZ
@given(
    kind=st.sampled_from(sorted(ALL)),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 1 << 20),
)
def test_damaged_files_raise_nothing_but_image_errors(kind, flips, cut):
    data = bytearray(ALL[kind])
    for place, bits in flips:
        data[place % len(data)] ^= bits
    if cut % 4 == 0:
        del data[cut % len(data) :]
    try:
        assert read_image(bytes(data), "it", SMALL).mode == "RGB"
    except ImageError as error:
        assert str(error).startswith("it ")


@pytest.mark.filterwarnings("default")
@FUZZ
@given(
    head=st.sampled_from([ALL[kind][:length] for kind in sorted(ALL) for length in (4, 12, 26, 40)]),
    tail=st.binary(max_size=200),
)
def test_noise_raises_nothing_but_image_errors(head, tail):
    try:
        assert read_image(head + tail, "it", SMALL).mode == "RGB"
    except ImageError as error:
        assert str(error).startswith("it ")


def test_threads_do_not_disturb_each_other():
    failures = []

    def work(kind):
        for _ in range(20):
            if not np.array_equal(read(ALL[kind]), picture()):
                failures.append(kind)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in ("PNG", "WebP", "BMP", "TIFF-lzw")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_this_pillow_reads_every_format():
    for feature in ("jpg", "zlib", "webp", "libtiff", "littlecms2"):
        assert features.check(feature), feature


# --- pixels ------------------------------------------------------------------------------------------------

SIZES = [
    (1, 1), (1, 2), (2, 1), (15, 15), (16, 16), (17, 15), (15, 17), (17, 17), (31, 33), (32, 32), (33, 31),
    (1, 16), (16, 1), (1, 1024), (1024, 1), (1, 1025), (1025, 1), (1, 10000), (10000, 1), (9000, 3),
    (100, 100), (224, 224), (333, 777), (640, 480), (481, 639), (1023, 1023), (1024, 1024), (1025, 1025),
    (1024, 1025), (1025, 3), (1040, 1040), (1008, 1024), (1000, 1), (1366, 768), (768, 1366), (1500, 1024),
    (2048, 2048), (2047, 1025), (3000, 2000), (2000, 3000), (4032, 24), (1537, 511), (1279, 1281),
]  # fmt: skip


def vision(image_size=1024, patch_size=16):
    return VisionConfig(
        dim=64, n_layers=1, n_heads=2, ffn_dim=64, n_channels=3, patch_size=patch_size, image_size=image_size,
        rope_theta=1e4, norm_eps=1e-5, image_token_id=10, image_break_token_id=12, image_end_token_id=13,
    )  # fmt: skip


def encoded(image, image_size, patch_size):
    """What mistral_common itself makes of a picture: pixels [3, H, W] and tokens."""
    from mistral_common.protocol.instruct.chunk import ImageChunk
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs

    encoder = ImageEncoder(ImageConfig(patch_size, image_size), SpecialImageIDs(10, 12, 13))
    return encoder(ImageChunk(image=image))


def noise(width, height):
    rng = np.random.default_rng(width * 100_003 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_are_those_of_the_tokenizer(size):
    image = noise(*size)
    golden = encoded(image, 1024, 16)
    pixels = to_pixels(image, vision())
    assert pixels.dtype == np.float32 and pixels.flags.c_contiguous
    assert np.array_equal(pixels, golden.image)
    across, down = image_grid(*size, 1024, 16)
    assert pixels.shape == (3, down * 16, across * 16)
    assert golden.tokens.count(10) == across * down
    assert golden.tokens.count(12) == down - 1 and golden.tokens.count(13) == 1


@pytest.mark.parametrize("size", [(4000, 3000), (2500, 3400), (5_000_000, 2), (2, 5_000_000)])
def test_pixels_of_a_large_picture_are_those_of_the_tokenizer_but_for_the_last_bit(size):
    """It is resized in bands, which OpenCV's own code does to the bit and Intel's, in it, nearly."""
    image = noise(*size)
    assert np.abs(to_pixels(image, vision()) - encoded(image, 1024, 16).image).max() < 2e-6


@pytest.mark.parametrize(("image_size", "patch_size"), [(64, 16), (336, 14), (1540, 14), (96, 16)])
@pytest.mark.parametrize("size", [(1, 1), (300, 200), (65, 63), (1000, 7), (1541, 90)])
def test_pixels_follow_the_checkpoints_geometry(size, image_size, patch_size):
    image = noise(*size)
    golden = encoded(image, image_size, patch_size)
    assert np.array_equal(to_pixels(image, vision(image_size, patch_size)), golden.image)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 200_000),
    height=st.integers(1, 200_000),
    image_size=st.integers(1, 2048),
    patch_size=st.integers(1, 32),
)
def test_the_grid_is_that_of_the_tokenizer(width, height, image_size, patch_size):
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs

    class Sized:
        size = (width, height)

    encoder = ImageEncoder(ImageConfig(patch_size, image_size), SpecialImageIDs(1, 2, 3))
    grid = image_grid(width, height, image_size, patch_size)
    assert grid == encoder._image_to_num_tokens(Sized())
    assert min(grid) >= 1 and max(grid) <= -(-image_size // patch_size)


def test_a_persons_cap_lowers_the_size_only():
    image = noise(900, 450)
    assert to_pixels(image, vision(), 512).shape == (3, 256, 512)
    assert np.array_equal(to_pixels(image, vision(), 512), encoded(image, 512, 16).image)
    assert np.array_equal(to_pixels(image, vision(), 5000), to_pixels(image, vision()))
    assert to_pixels(image, vision(), 1).shape == (3, 16, 16)
    for cap in (0, -1):
        with pytest.raises(UsageError, match=f"largest image size is {cap}"):
            to_pixels(image, vision(), cap)


def test_pixels_are_normalised_as_clip_does():
    pixels = to_pixels(Image.new("RGB", (40, 20), (255, 128, 0)), vision())
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.array([255, 128, 0]) / 255 - mean) / deviation
    assert np.abs(pixels - expected[:, None, None]).max() < 1e-5


def test_pixel_hash_sees_shape_type_and_every_bit():
    pixels = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    key = pixel_hash(pixels)
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert key == pixel_hash(pixels.copy()) == pixel_hash(np.asfortranarray(pixels))
    changed = pixels.copy()
    changed[2, 1, 3] = np.nextafter(changed[2, 1, 3], np.float32(99))
    others = [changed, pixels.reshape(3, 4, 2), pixels.view(np.int32), pixels.transpose(0, 2, 1)]
    assert len({key, *map(pixel_hash, others)}) == 5
    assert key != hashlib.sha256(pixels.tobytes()).hexdigest()


def test_importing_stays_light():
    script = "import sys, pixedge.image; print({'cv2', 'mistral_common', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
