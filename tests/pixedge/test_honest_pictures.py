"""The largest honest pictures of each format stay within the budget that hostile ones are held to."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from pixedge.image import ImageLimits, read_fitted

LIMITS = ImageLimits(max_bytes=1 << 30)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 6e9, reason="less than 6 GB of memory"
    ),
]


def photo(width, height):
    """Waves with noise, as smooth and as rough as a photo."""
    across, down = np.linspace(0, 60, width, dtype=np.float32), np.linspace(0, 60, height, dtype=np.float32)
    values = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        values[..., channel] = np.sin(down + channel)[:, None] * np.cos(across)[None] * 100 + 128
    values[::2] ^= np.random.default_rng(0).integers(0, 8, (1, width, 3), np.uint8)
    return Image.fromarray(values)


def rgba(image):
    image.putalpha(image.getchannel(0))
    return image


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey(kind, **options):
    def make(image):
        return encoded(
            Image.fromarray(np.asarray(image.getchannel(0)).astype(kind) * 1000), "TIFF", **options
        )

    return make


MAXIMA = {
    "JPEG": ((10_000, 10_000), lambda image: encoded(image, "JPEG", quality=90)),
    "JPEG progressive": ((10_000, 10_000), lambda image: encoded(image, "JPEG", progressive=True)),
    "PNG RGB": ((10_000, 10_000), lambda image: encoded(image, "PNG", compress_level=1)),
    "PNG RGBA": ((10_000, 10_000), lambda image: encoded(rgba(image), "PNG", compress_level=1)),
    "WebP": ((10_000, 10_000), lambda image: encoded(image, "WebP", method=0)),
    "WebP lossless RGBA": (
        (10_000, 10_000),
        lambda image: encoded(rgba(image), "WebP", lossless=True, method=0, quality=0),
    ),
    "GIF": ((10_000, 10_000), lambda image: encoded(image.quantize(256, Image.Quantize.FASTOCTREE), "GIF")),
    "TIFF LZW": ((10_000, 10_000), lambda image: encoded(image, "TIFF", compression="tiff_lzw")),
    "TIFF of floats": ((10_000, 10_000), grey(np.float32)),
    "TIFF of integers": ((10_000, 10_000), grey(np.int32, compression="tiff_adobe_deflate")),
    "BMP": ((10_000, 10_000), lambda image: encoded(image, "BMP")),
    "AVIF": ((10_000, 10_000), lambda image: encoded(image, "AVIF", speed=10)),
    "PPM": ((10_000, 10_000), lambda image: encoded(image, "PPM")),
}


@pytest.mark.parametrize(("size", "make"), MAXIMA.values(), ids=MAXIMA)
def test_a_picture_of_a_hundred_megapixels(size, make):
    found = read_fitted(make(photo(*size)), "it", LIMITS, 1024, 16)
    assert (found.size, found.pixels.shape) == (size, (3, 1024, 1024))
