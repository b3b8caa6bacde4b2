"""Decodes pictures, one after the other; run by `pixedge.picture_process` as a process of its own.

A task is a line of JSON and the file's bytes on standard input. The answer on standard output is an `ANSWER`
header and what it announces. The process limits its own memory and CPU time by the picture's size, anew for
each, and runs at the lowest priority. It imports neither torch nor onnxruntime.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from pixedge.errors import ImageError
from pixedge.image import ImageLimits, TooManyPixelsError, fit_pixels
from pixedge.picture_formats import (
    Allow,
    Decoded,
    EndOfFileError,
    TooMuchError,
    UnsupportedError,
    bmp,
    detect,
    gif,
    heif,
    jpeg,
    png,
    pnm,
    tiff,
    webp,
)
from pixedge.picture_formats.grey import NotNumbersError, to_8_bits
from pixedge.picture_process import ANSWER, Budget

_DECODERS: dict[str, Callable[[bytes, Allow], Decoded]] = {
    "JPEG": jpeg.decode,
    "PNG": png.decode,
    "WebP": webp.decode,
    "GIF": gif.decode,
    "TIFF": tiff.decode,
    "BMP": bmp.decode,
    "AVIF": heif.decode_avif,
    "HEIC": heif.decode_heic,
    "PNM": pnm.decode,
}

# The file is damaged, so getting it again is what helps.
_GET_AGAIN = "copy or download it again"

# Rows are converted in bands of so many pixels, so that no second picture is held.
_BAND = 1 << 20

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_picture(data: bytes, name: str, limits: ImageLimits, grow: Allow | None = None) -> Image.Image:
    """Decode one picture: first frame, upright, over white, 8-bit RGB, without metadata.

    data is a whole file in one of the formats; grow(width, height) is called when its size is known. Raises
    ImageError as `pixedge.image.read_image` says.
    """
    kind = detect(data)
    assert kind is not None, "what is not a picture is refused before"

    def allow(width: int, height: int) -> None:
        if width * height > limits.max_pixels:
            raise TooManyPixelsError(
                f"{name} has {width * height:,} pixels ({width} x {height}) and the limit is "
                f"{limits.max_pixels:,}; make the picture smaller"
            )
        if grow is not None:
            grow(width, height)

    try:
        decoded = _DECODERS[kind](data, allow)
        rgb = _to_rgb(decoded)
    except ImageError:
        raise
    except EndOfFileError:
        raise ImageError(
            f"{name} is truncated: the {kind} ends after {len(data):,} bytes; {_GET_AGAIN}"
        ) from None
    except UnsupportedError as error:
        raise ImageError(
            f"{name} is a {kind} {error}, which pixedge cannot read; save it as PNG or 8-bit TIFF"
        ) from None
    except TooMuchError as error:
        raise ImageError(f"{name} has {error}; save it again as PNG") from None
    except NotNumbersError:
        raise ImageError(
            f"{name} has pixels that are not numbers (NaN or infinity); save it as 8-bit PNG"
        ) from None
    except heif.MissingPackageError:
        raise ImageError(
            f"{name} is HEIC, which needs an extra package; run: pip install 'pixedge[heic]'"
        ) from None
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory while being decoded; make it smaller") from None
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} cannot be decoded as {kind} ({reason[:200]}); {_GET_AGAIN}") from error
    if decoded.orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[decoded.orientation])
    rgb.info.clear()
    return rgb


def _to_rgb(decoded: Decoded) -> Image.Image:
    """Bring any mode to RGB over white, a band of rows at a time."""
    image = decoded.image
    if "transparency" in image.info:
        image.info["transparency"] = _scaled_colour_key(image.info["transparency"], decoded.stored)
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_to_rgb(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    for box in _bands(image.size):
        band = image.crop(box)
        if band.has_transparency_data:
            alpha = band.convert("RGBA")
            band = Image.new("RGB", alpha.size, (255, 255, 255))
            band.paste(alpha, mask=alpha.getchannel("A"))
        rgb.paste(band.convert("RGB"), box)
    return rgb


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale Pillow's deep grey, which only PNG still brings."""
    values = np.asarray(image)  # [height, width]
    if image.mode.startswith("I;16"):
        values = values.astype(np.uint16, copy=False)
    grey = to_8_bits(values)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _scaled_colour_key(key: Any, stored: object) -> Any:
    """Bring a PNG's transparent colour (tRNS) to the range that Pillow expands the samples to."""
    if stored == "RGB;16B":  # Pillow keeps the high bytes only, so colours that share them go together
        return tuple(value >> 8 for value in key)
    if stored in ("L;2", "L;4"):
        return key * (85 if stored == "L;2" else 17)
    return key


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


# The process


def _answer(out: BinaryIO, kind: bytes, width: int, height: int, *parts: bytes) -> None:
    out.write(ANSWER.pack(kind, width, height))
    for part in parts:
        out.write(part)
    out.flush()


def _work(task: dict[str, Any], data: bytes, out: BinaryIO) -> None:
    """Answer one task."""
    limits, name = ImageLimits(**task["limits"]), task["name"]
    # a file is held up to three times more: stripped, by Pillow and by the library
    own = _Limits(Budget(**task["budget"]), 3 * len(data))
    own.grow(0, 0)
    try:
        picture = decode_picture(data, name, limits, own.grow)
        if task["fit"] is None:
            _answer(out, b"P", *picture.size)
            for box in _bands(picture.size):
                out.write(picture.crop(box).tobytes())
            out.flush()
        else:
            pixels = fit_pixels(picture, *task["fit"])
            _answer(out, b"F", *picture.size, pixels.nbytes.to_bytes(4, "little"), pixels.tobytes())
    except ImageError as error:
        sentence = str(error).encode("utf-8", errors="replace")
        _answer(out, b"T" if isinstance(error, TooManyPixelsError) else b"E", len(sentence), 0, sentence)
    finally:
        own.lift()


class _Limits:
    """What the process may take from now on, by the pixels of its picture."""

    def __init__(self, budget: Budget, more: int) -> None:
        self._budget = budget
        self._pixels = -1
        self._before = _address_space() + more
        self._most = -1

    def grow(self, width: int, height: int) -> None:
        """Allow what so many pixels may take, if that is more; the time begins anew.

        When the CPU time is over, a signal ends the process.
        """
        if width * height <= self._pixels:
            return
        self._pixels = width * height
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, max(self._budget.seconds(self._pixels), 1e-3))
        with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
            import resource

            limit, hard = self._before + self._budget.memory(self._pixels), resource.RLIM_INFINITY
            self._most = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(
                resource.RLIMIT_AS, (limit if self._most == hard else min(limit, self._most), self._most)
            )

    def lift(self) -> None:
        """Allow anything again."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (self._most, self._most))


def _address_space() -> int:
    """Return the bytes of address space that the process has by now."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 1 << 30


def main() -> None:
    """Serve tasks until standard input ends."""
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(19)
    if hasattr(signal, "SIGPROF"):  # it ends this process in time, whatever the program that started it does
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    warnings.simplefilter("ignore")  # Pillow remarks on odd files
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, checked before anything is decoded
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        task = json.loads(line)
        data = source.read(task["bytes"])
        if len(data) < task["bytes"]:
            return
        _work(task, data, out)
        del data


if __name__ == "__main__":
    main()
