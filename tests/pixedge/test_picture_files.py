"""Forms of picture files that few programs write, checked against pixels made here."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pixedge.errors import ImageError
from pixedge.image import ImageLimits, read_image
from pixedge.picture_formats import tiff

ROWS, COLUMNS = np.mgrid[0:21, 0:33]
RGB = np.stack([COLUMNS * 7, ROWS * 11, (COLUMNS + ROWS) * 4], -1).astype(np.uint8)


def read(data: bytes) -> np.ndarray:
    return np.asarray(read_image(data, "it", ImageLimits()))


@pytest.mark.parametrize("order", ["<", ">"])
def test_bigtiff_of_both_byte_orders(order: str) -> None:
    """Pillow does not know the big-endian one, which was called truncated."""
    tags = [
        (256, 33),
        (257, 21),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 16),
        (277, 1),
        (278, 21),
        (279, 33 * 21),
    ]
    grey = np.ascontiguousarray(RGB[..., 0])
    entries = b"".join(
        # offset and size of the strip as LONG8, all else as SHORT
        struct.pack(f"{order}HHQ", tag, 16 if tag in (273, 279) else 3, 1)
        + (struct.pack(f"{order}Q", value) if tag in (273, 279) else struct.pack(f"{order}H6x", value))
        for tag, value in tags
    )
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HHHQ", 43, 8, 0, 16 + grey.size)
    data = head + grey.tobytes() + struct.pack(f"{order}Q", len(tags)) + entries + bytes(8)
    assert np.array_equal(read(data)[..., 1], grey)


@pytest.mark.skipif(tiff._is_built_in("webp"), reason="this Pillow's libtiff has WebP")
def test_a_tiff_whose_codec_is_not_built_in_is_not_called_damaged() -> None:
    """The advice was to download a whole file again."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "TIFF")
    plain, webp = (struct.pack("<HHII", 259, 3, 1, compression) for compression in (1, 50001))
    assert plain in buffer.getvalue()
    with pytest.raises(ImageError, match=r"with webp compression, .* save it as PNG"):
        read(buffer.getvalue().replace(plain, webp))


@pytest.mark.parametrize("kept", [1, 500, 21 * 33 * 3 - 1])
def test_plain_pnm_that_ends_early_is_truncated(kept: int) -> None:
    """numpy makes up the numbers that are missing from what the memory held before: a stranger's picture."""
    head, numbers = b"P3\n33 21\n255\n", [str(value).encode() for value in RGB.ravel()]
    assert np.array_equal(read(head + b" ".join(numbers)), RGB)
    with pytest.raises(ImageError, match="truncated"):
        read(head + b" ".join(numbers[:kept]))


def test_a_webp_without_the_end_that_turns_it_is_truncated() -> None:
    """EXIF stands behind the picture, which was shown lying on its side when the file lost its end."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "WEBP", lossless=True, exif=exif)
    data = buffer.getvalue()
    assert np.array_equal(read(data), np.rot90(RGB, -1))
    for cut in (data.index(b"EXIF"), len(data) - 5):
        with pytest.raises(ImageError, match="truncated"):
            read(data[:cut])
