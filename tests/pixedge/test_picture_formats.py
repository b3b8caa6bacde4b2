"""What stands beside a picture, grey of every depth, the formats of one list, and files made to cost much.

TIFF, PNM and chunks are laid out here byte by byte from known arrays, so that nothing here shares its idea of
a format with what reads it.
"""

import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from pixedge.batch.picture_files import ENDINGS as BATCH_ENDINGS
from pixedge.commands.dropped_paths import read_message
from pixedge.errors import ImageError
from pixedge.image import ImageLimits, read_fitted, read_image
from pixedge.picture_formats import ENDINGS, FORMATS, READABLE, detect
from pixedge.picture_process import Budget, PictureProcesses, ProcessEndedError
from pixedge.serve.page import load_page
from tests.hostile_pictures import PNG, REFUSED, chunk, encoded, rle, scans

LIMITS = ImageLimits()


def read(data):
    return np.asarray(read_image(data, "it", LIMITS))


def refusal(data, limits=LIMITS):
    with pytest.raises(ImageError) as caught:
        read_image(data, "it", limits)
    return str(caught.value)


def picture(width=33, height=21):
    rng = np.random.default_rng(5)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))


# --- beside the picture ------------------------------------------------------------------------------------

# 6 is turned by 90 degrees, in the shortest TIFF directory that says so
EXIF = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + bytes(4)
BOMB = zlib.compress(bytes(30_000_000), 9)

PNG_CHUNKS = {
    "a text that inflates": chunk(b"zTXt", b"a\0\0" + BOMB),
    "an international text that inflates": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "a long text": chunk(b"tEXt", b"a\0" + bytes(3_000_000)),
    "a text without an end": chunk(b"iTXt", b"a"),
    "a profile that inflates": chunk(b"iCCP", b"a\0\0" + BOMB),
    "a profile that is none": chunk(b"iCCP", b""),
    "a wrong checksum": chunk(b"tIME", b"\0" * 7, 1),
    "a damaged gamma": chunk(b"gAMA", b""),
    "a damaged size": chunk(b"pHYs", b"\0"),
    "an unknown one": chunk(b"abCd", os.urandom(1000), 3),
    "damaged EXIF": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "a damaged animation": chunk(b"acTL", b"\xff" * 8) + chunk(b"fcTL", b"\xff"),
    "many": chunk(b"tEXt", b"a\0b") * 20_000,
}


@pytest.mark.parametrize("beside", PNG_CHUNKS.values(), ids=PNG_CHUNKS)
def test_chunks_beside_a_png_are_not_read(beside):
    data = encoded(picture(), "PNG")
    for at in (33, len(data) - 12):  # behind the header, and before the end
        assert np.array_equal(read(data[:at] + beside + data[at:]), picture())


def segments(body, name=b"\xff\xe1"):
    return b"".join(
        name + struct.pack(">H", len(body[at : at + 65_000]) + 2) + body[at : at + 65_000]
        for at in range(0, len(body), 65_000)
    )


JPEG_SEGMENTS = {
    "a large profile": segments(b"ICC_PROFILE\0\1\1" + os.urandom(3_000_000), b"\xff\xe2"),
    "many small Exif": segments(b"Exif\0\0ab") * 50_000,
    "damaged EXIF": segments(b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "a Photoshop block cut short": segments(b"Photoshop 3.0\x008BIM\x04\x04\xff", b"\xff\xed"),
    "an MPF index that leads nowhere": segments(b"MPF\0II*\0\xff\xff\xff\x7f", b"\xff\xe2"),
    "comments": segments(os.urandom(200_000), b"\xff\xfe"),
    "an odd JFIF extension": segments(b"JFXX\0\x10", b"\xff\xe0"),
    "fill bytes": b"\xff" * 1000 + segments(b"x"),
}


@pytest.mark.parametrize("beside", JPEG_SEGMENTS.values(), ids=JPEG_SEGMENTS)
def test_segments_beside_a_jpeg_are_not_read(beside):
    data = encoded(picture(), "JPEG", quality=95)
    assert np.array_equal(read(data[:2] + beside + data[2:]), read(data))


def test_chunks_beside_a_webp_are_not_read():
    data = encoded(picture(), "WebP", lossless=True)
    size = struct.pack("<I", 32)[:3] + struct.pack("<I", 20)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x2c\0\0\0" + size
    for name in (b"ICCP", b"EXIF", b"XMP ", b"abcd"):
        for body in (b"", b"x" * 11, bytes(2_000_000)):
            more = name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
            for inner in (extended + more + data[12:], extended + data[12:] + more):
                whole = b"RIFF" + struct.pack("<I", len(inner) + 4) + b"WEBP" + inner
                assert np.array_equal(read(whole), picture()), name


def test_extensions_beside_a_gif_are_not_read():
    data = encoded(picture().quantize(64), "GIF")
    at = data.index(b",\0\0\0\0")
    for beside in (
        b"!\xfe\3abc\0",
        b"!\xff\x0bXMP DataXMP" + b"\xffx" * 0 + b"\2ab" * 9000 + b"\0",
        b"!\1\0",
    ):
        assert np.array_equal(read(data[:at] + beside + data[at:]), read(data))


def test_orientation_is_read_all_the_same():
    turned = np.rot90(np.asarray(picture()), -1)
    data = encoded(picture(), "PNG")
    assert np.array_equal(
        read(data[:33] + chunk(b"eXIf", EXIF) + PNG_CHUNKS["a wrong checksum"] + data[33:]), turned
    )
    jpeg = encoded(picture(), "JPEG", quality=95)
    noise = JPEG_SEGMENTS["a large profile"] + segments(b"Exif\0\0" + EXIF + os.urandom(60_000))
    assert np.array_equal(read(jpeg[:2] + noise + jpeg[2:]), np.rot90(read(jpeg), -1))


# --- TIFF --------------------------------------------------------------------------------------------------


def tiff(tags, data, order="<", big=False):
    """Lay out a TIFF, or a BigTIFF, whose pixels follow the directory."""
    entries = sorted({**tags, 273: None, 279: len(data)}.items())
    head, long = (16, "Q") if big else (8, "I")
    at = head + (8 if big else 2) + len(entries) * (20 if big else 12) + (8 if big else 4)
    file = b"II" if order == "<" else b"MM"
    file += struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8)))
    file += struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, value in entries:
        file += struct.pack(f"{order}HH{long}", tag, 4, 1)
        file += struct.pack(order + "I", at if value is None else value) + bytes(4 if big else 0)
    return file + bytes(8 if big else 4) + data


def packed(values, bits):
    """Pack rows of unsigned samples, most significant bit first."""
    rows = [format(value, f"0{bits}b") for value in range(1 << bits)] if bits <= 12 else None
    return b"".join(
        (lambda text: int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big"))(
            "".join(rows[value] for value in row)
        )
        for row in values
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("packing", [1, 8, 32773])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_unsigned_grey_of_every_depth(bits, packing, white_is_zero, order):
    """16-bit WhiteIsZero was read as its negative, without a word."""
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 1 << bits, (5, 11))
    values[0, :2] = 0, (1 << bits) - 1
    data = values.astype(f"{order}u2").tobytes() if bits == 16 else packed(values, bits)
    if packing == 8:
        data = zlib.compress(data)
    elif packing == 32773:  # runs of literal bytes
        size = len(data) // 5
        rows = [data[at : at + size] for at in range(0, len(data), size)]
        data = b"".join(bytes([size - 1]) + row for row in rows)
    tags = {256: 11, 257: 5, 258: bits, 259: packing, 262: int(not white_is_zero), 277: 1, 278: 5}
    expected = np.rint(values * 255 / ((1 << bits) - 1)).astype(np.uint8)
    expected = 255 - expected if white_is_zero else expected
    for big in (False, True):
        found = read(tiff(tags, data, order, big))
        assert np.array_equal(found, np.stack([expected] * 3, -1))


DEEP = {
    "i1": ([0, 100, 127], [0, 100, 127]),
    "i1 below zero": ([-128, 0, 127], [0, 128, 255]),
    "i2": ([0, 257, 32767], [0, 1, 127]),
    "i2 below zero": ([-100, 0, 300], [0, 64, 255]),
    "i4": ([0, 100, 255], [0, 100, 255]),
    "i4 below zero": ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
    "u4": ([0, 257, 65535], [0, 1, 255]),
    "u4 large": ([0, 2**31, 2**32 - 1], [0, 128, 255]),
    "u8": ([0, 2**62, 2**64 - 1], [0, 64, 255]),
    "i8": ([-(2**62), 0, 2**62], [0, 128, 255]),
    "f2": ([0, 0.25, 1], [0, 64, 255]),
    "f4": ([0, 0.25, 1], [0, 64, 255]),
    "f4 below zero": ([-10, 0, 30], [0, 64, 255]),
    "f8": ([0.5, 0.25, 1], [128, 64, 255]),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("packing", [1, 8])
@pytest.mark.parametrize("name", DEEP)
def test_signed_deep_and_float_grey(name, packing, white_is_zero, order):
    values, expected = DEEP[name]
    kind = np.dtype(order + name[:2])
    data = np.array([values, values], kind).tobytes()
    sign = {"u": 1, "i": 2, "f": 3}[kind.kind]
    tags = {
        256: 3,
        257: 2,
        258: kind.itemsize * 8,
        259: packing,
        262: int(not white_is_zero),
        278: 2,
        339: sign,
    }
    found = read(tiff(tags, zlib.compress(data) if packing == 8 else data, order))
    assert found[..., 0].tolist() == [[255 - each if white_is_zero else each for each in expected]] * 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u2", "u4", "f4"])
def test_differences_of_deep_grey(kind, order):
    """Predictor 2 of whole numbers and predictor 3 of floats, which scanners and telescopes write."""
    values = np.random.default_rng(0).integers(0, 255, (4, 9)).astype(order + kind)
    tags = {256: 9, 257: 4, 258: values.itemsize * 8, 259: 8, 262: 1, 278: 4, 339: 3 if kind == "f4" else 1}
    if kind == "f4":
        values = (values / np.float32(255)).astype(order + kind)
        planes = values.astype(">f4").view(np.uint8).reshape(4, 9, 4).transpose(0, 2, 1).reshape(4, 36)
        stored = np.diff(planes, axis=1, prepend=np.uint8(0)).astype(np.uint8).tobytes()
        tags[317], expected = 3, np.rint(values * 255)
    else:
        wide = values.astype(np.int64)
        stored = np.diff(wide, axis=1, prepend=0).astype(order + kind).tobytes()
        tags[317], expected = 2, np.rint(wide / 257) if kind == "u2" else wide
    assert np.array_equal(read(tiff(tags, zlib.compress(stored), order))[..., 0], expected)


UNREADABLE = {
    "floats in colour": tiff({256: 1, 257: 1, 258: 32, 259: 1, 262: 2, 277: 3, 278: 1, 339: 3}, bytes(12)),
    "complex samples": tiff({256: 1, 257: 1, 258: 64, 259: 1, 262: 1, 277: 1, 278: 1, 339: 6}, bytes(8)),
    "an unknown compression": tiff({256: 1, 257: 1, 258: 8, 259: 34712, 262: 1, 277: 1, 278: 1}, b"\0"),
    "bits that no one has": tiff({256: 8, 257: 1, 258: 7, 259: 1, 262: 1, 277: 1, 278: 1}, bytes(9)),
    "a JPEG of 12 bits": encoded(Image.new("L", (8, 8)), "JPEG").replace(
        b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"
    ),
    "a lossless JPEG": encoded(Image.new("L", (8, 8)), "JPEG").replace(b"\xff\xc0", b"\xff\xc3"),
    "a BMP that is a JPEG": encoded(Image.new("RGB", (8, 8)), "BMP")[:30] + struct.pack("<I", 4) + bytes(300),
    "an iPhone's own PNG": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"CgBI", bytes(4)),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_a_form_that_nothing_here_reads_is_not_called_damaged(data):
    """The file is whole: getting it again does not help, saving it in another form does."""
    text = refusal(data)
    assert text.endswith("which pixedge cannot read; save it as PNG or 8-bit TIFF"), text


# --- JPEG without its end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 3}, {"subsampling": 0}],
    ids=str,
)
def test_a_jpeg_without_its_end_marker(options):
    """All rows are there, and some cameras and downloads leave out the marker; a byte less is too little."""
    data = encoded(picture(160, 96), "JPEG", quality=75, **options)
    assert np.array_equal(read(data[:-2]), read(data))
    for missing in (3, 4, 7, 20, 100, len(data) // 3):
        assert "is truncated" in refusal(data[:-missing]), missing


def test_a_jpeg_that_was_ended_too_early():
    """Rows are missing, and a repair tool has put the marker behind what was there."""
    data = encoded(picture(160, 96), "JPEG", quality=75)
    assert "is truncated" in refusal(data[: len(data) // 2] + b"\xff\xd9")
    white = encoded(Image.new("RGB", (160, 96), "white"), "JPEG")
    assert read(white).min() == 255  # whole, though its end is as even as if libjpeg had filled up


# --- AVIF and PNM ------------------------------------------------------------------------------------------


def test_avif():
    image = picture(64, 48)
    found = read(encoded(image, "AVIF", quality=100, subsampling="4:4:4"))
    assert np.abs(found.astype(int) - np.asarray(image, int)).mean() < 3
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert read(encoded(clear, "AVIF")).min() > 250
    data = encoded(image, "AVIF", exif=EXIF, icc_profile=os.urandom(5000), xmp=b"<x>" * 9000)
    assert read(data).shape[:2] == (64, 48)  # turned
    assert "3,072 pixels" in refusal(data, ImageLimits(max_pixels=3071))
    for cut in (20, len(data) // 2, len(data) - 30):
        refusal(data[:cut])
    assert read(data + os.urandom(999)).shape[:2] == (64, 48)


def test_pnm():
    assert read(b"P1\n# a comment\n3 2\n1 0 1\n010").tolist() == read(b"P4 3 2\n\xa0\x40").tolist()
    assert read(b"P1 3 1 101")[0, :, 0].tolist() == [0, 255, 0]
    assert read(b"P2 3 1 # most\n4\n0 1 # one\n 4")[0, :, 0].tolist() == [0, 64, 255]
    assert read(b"P5 3 1 255\n\x00\x40\xff")[0, :, 0].tolist() == [0, 64, 255]
    assert read(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257, 65535))[0, :, 0].tolist() == [0, 1, 255]
    assert read(b"P3 1 1 255 1 2 3")[0, 0].tolist() == [1, 2, 3]
    assert read(b"P6\n1 1\n255\n\1\2\3" + b"P6 another one")[0, 0].tolist() == [1, 2, 3]
    low = b"Pf 1 2 -1\n" + struct.pack("<2f", 0, 1)  # the bottom row comes first
    assert read(low)[:, 0, 0].tolist() == [255, 0]
    assert read(b"PF 1 1 1\n" + struct.pack(">3f", 0, 0.25, 1))[0, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize(
    "data",
    [b"P5 3 2 255\n12345", b"P4 9 2\n123", b"P2 2 2 9\n1 2 3", b"P1 2 2\n101", b"Pf 2 1 1\n1234567", b"P6 3"],
)
def test_pnm_with_rows_missing(data):
    assert "is truncated" in refusal(data)


def test_pnm_that_claims_too_much():
    assert "3,600,000,000 pixels (60000 x 60000)" in refusal(b"P5 60000 60000 255\n")
    assert "cannot be decoded as PNM" in refusal(b"P5 0 4 255\n")
    assert "cannot be decoded as PNM" in refusal(b"P5 1 1 99999\n12")


# --- BMP in runs -------------------------------------------------------------------------------------------


def test_bmp_in_runs():
    rows = [[3, 3, 3, 1], [0, 7, 2, 5]]  # the bottom row comes first
    eight = rle(8, 4, 2, bytes([3, 3, 1, 1, 0, 0, 0, 2, 1, 0, 0, 3, 7, 2, 5, 0, 0, 1]))
    four = rle(4, 4, 2, bytes([3, 0x33, 1, 0x10, 0, 0, 0, 2, 1, 0, 0, 3, 0x72, 0x50, 0, 1]))
    expected = [[[value, value * 5, value * 10] for value in row] for row in reversed(rows)]
    assert read(eight).tolist() == read(four).tolist() == expected
    assert "is truncated" in refusal(eight[:-5])


# --- one list ----------------------------------------------------------------------------------------------


def test_every_door_has_the_same_list(tmp_path):
    """Chat took .avif and .ppm for pictures that nothing then read, and the page did not take them at all."""
    assert BATCH_ENDINGS - {".pdf"} == ENDINGS
    for ending in ENDINGS:
        (tmp_path / f"a{ending}").touch()
        assert read_message(f"{tmp_path}/a{ending} What?").paths == (f"{tmp_path}/a{ending}",)
    page = load_page().body.decode()
    accept = re.search(r'accept="([^"]*)"', page)[1].split(",")
    assert {*accept} == ENDINGS | {media for each in FORMATS for media in each.media_types}
    assert f"choose {READABLE}." in page
    assert "{{" not in page


def test_what_is_on_the_list_is_read(tmp_path):
    files = {name: encoded(picture(), name) for name in ("JPEG", "PNG", "WebP", "TIFF", "BMP", "AVIF")}
    files |= {"GIF": encoded(picture().quantize(), "GIF"), "PNM": encoded(picture(), "PPM")}
    heif = pytest.importorskip("pillow_heif", reason="the heic extra (pillow_heif) is not installed")
    stream = io.BytesIO()
    heif.from_pillow(picture()).save(stream)
    files["HEIC"] = stream.getvalue()
    assert {each.name for each in FORMATS} == files.keys()
    for name, data in files.items():
        assert detect(data) == name
        assert read(data).shape == (21, 33, 3)
        fitted = read_fitted(data, "it", LIMITS, 1024, 16)
        assert (fitted.size, fitted.pixels.shape) == ((33, 21), (3, 32, 48))


# --- files made to cost much -------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_asks_for_more_than_its_picture_is_worth(make, reason):
    assert reason in refusal(make())


def ask(processes, data, limits=LIMITS):
    return processes.ask({"name": "it", "limits": asdict(limits), "fit": None}, data, limits.max_pixels)


def test_a_picture_over_its_budget_of_time_ends_the_process_and_not_the_next_picture():
    processes = PictureProcesses(1, Budget(seconds_a_pixel=1e-12, least_seconds=0.001))
    data = encoded(Image.new("RGB", (3000, 3000)), "PNG")
    with pytest.raises(ProcessEndedError) as caught:
        ask(processes, data)
    assert caught.value.over_time
    generous = PictureProcesses(1)
    assert ask(generous, data)[:3] == (b"P", 3000, 3000)
    for each in (processes, generous):
        each.close()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is only enforced on Linux")
def test_a_picture_over_its_budget_of_memory_is_refused():
    processes = PictureProcesses(1, Budget(bytes_a_pixel=1, least_bytes=1 << 20))
    kind, _, _, sentence = ask(processes, encoded(Image.new("RGB", (4000, 4000)), "PNG"))
    assert (kind, b"does not fit into memory" in sentence) == (b"E", True)
    assert ask(processes, PNG)[:3] == (b"P", 4, 4)  # the same process serves on
    processes.close()


def test_a_process_that_dies_is_replaced(monkeypatch):
    processes = PictureProcesses(1)
    processes.warm()
    processes._idle[0].kill()
    with pytest.raises(ProcessEndedError):
        ask(processes, PNG)
    assert ask(processes, PNG)[:3] == (b"P", 4, 4)
    processes.close()


@pytest.mark.skipif(not hasattr(os, "nice"), reason="no priorities on this system")
def test_the_process_is_light_and_of_the_lowest_priority():
    processes = PictureProcesses(1)
    ask(processes, PNG)
    assert os.getpriority(os.PRIO_PROCESS, processes._idle[0].pid) == 19
    processes.close()
    script = (
        "import sys, pixedge.picture_decoder; print({'torch', 'onnxruntime', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_processes_of_its_own():
    """Two speakers on one pipe would get each other's pictures."""
    assert read(PNG).shape == (4, 4, 3)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if read(encoded(picture(), "PNG")).shape == (21, 33, 3) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(PNG).shape == (4, 4, 3)


def test_pictures_that_take_long_do_not_hold_the_others():
    """A small picture passes a slow one that came first, though there is one process for the pool.

    The slow one takes some 2 s of processor time. It uses up its first, short budget, and is begun again
    where only such pictures wait.
    """
    processes = PictureProcesses(1)
    task = {"name": "it", "limits": asdict(LIMITS), "fit": (64, 16)}
    order: list[str] = []

    def ask(name: str, data: bytes) -> None:
        assert processes.ask(task, data, LIMITS.max_pixels, shared=True)[0] == b"F"
        order.append(name)

    slow = threading.Thread(target=ask, args=("slow", scans(60, 5000)))
    slow.start()
    try:
        while processes._slow._value:  # until it waits no more where the small one goes
            assert slow.is_alive()
        ask("small", encoded(Image.new("RGB", (40, 30)), "PNG"))
    finally:
        slow.join()
        processes.close()
    assert order == ["small", "slow"]
