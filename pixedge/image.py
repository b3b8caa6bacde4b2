"""Pictures from strangers: untrusted bytes to RGB under limits, and RGB to the encoder's pixels.

    bytes ── size cap ── format ── (another process: header, pixel cap ── decode ── upright RGB) ── [3, H, W]

The decoders are Pillow's format classes, called directly on bytes held in memory (`pixedge.picture_formats`)
instead of through ``Image.open``: no other plugin (EPS starts Ghostscript) can run, and no library opens a
path or a URL by itself. They run in a process of their own with limits on memory and CPU time
(`pixedge.picture_process`). Everything that goes wrong with a picture is an `ImageError` that names it.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from pixedge.errors import ImageError, UsageError
from pixedge.named_pipe import NamedPipe
from pixedge.path_patterns import irregular
from pixedge.picture_formats import READABLE, detect
from pixedge.picture_process import PROCESSES, ProcessEndedError

if TYPE_CHECKING:
    from pixedge.config import VisionConfig

# ISO 32000-1, Annex H, note 13: readers accept the header anywhere within the first 1024 bytes.
_PDF_HEADER_WITHIN = 1024

# CLIP's, as mistral_common's DATASET_MEAN and DATASET_STD have them.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

# Larger pictures are resized in bands: in one piece they take 12 bytes a pixel as float32.
_BANDS_ABOVE = 1 << 23
_BAND = 1 << 21


class TooManyPixelsError(ImageError):
    """A picture whose header names more pixels than allowed; nothing of it was decoded."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost before it is decoded.

    max_bytes: size of the file. max_pixels: width times height. max_images: pictures in one conversation.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000
    max_images: int = 64

    def check_count(self, count: int) -> None:
        """Raise ImageError where a conversation has more pictures than the limit."""
        if count > self.max_images:
            raise ImageError(
                f"{count} pictures were given and the limit is {self.max_images}; give fewer pictures"
            )


class FittedPicture(Image.Image):
    """A picture of which only what the encoder looks at is left.

    It has the size of its file, goes wherever an RGB picture goes on its way to the tokenizer, and carries
    ``pixels``, float32 [3, H, W], as `fit_pixels` makes them. Its own pixels are gone: Pillow can do nothing
    with it.
    """

    def __init__(self, size: tuple[int, int], pixels: np.ndarray) -> None:
        """Take what the other process made."""
        super().__init__()
        self._mode, self._size = "RGB", size
        self.pixels = pixels


def read_image(source: bytes | Path | BinaryIO, name: str, limits: ImageLimits) -> Image.Image:
    """Decode one picture: first frame, upright, over white, 8-bit RGB, without metadata.

    source is the bytes of the file, its path, or a binary stream; name is what errors call it. Formats: those
    of `pixedge.picture_formats`, HEIC where pillow_heif is installed. Grey of 16 or 32 bits and floats are
    scaled to 8 bits, as `pixedge.picture_formats.grey` says. Colour profiles are not applied.

    Raises ImageError for a missing, unreadable, empty, truncated, damaged or too large file, for one that is
    not a picture, and for one that takes more time or memory than its pixels are worth. The limits are
    checked before the file is read whole and before it is decoded.
    """
    _, width, height, content = _ask(source, name, limits, None)
    return Image.frombytes("RGB", (width, height), content)


def read_fitted(
    source: bytes | Path | BinaryIO, name: str, limits: ImageLimits, image_size: int, patch_size: int
) -> FittedPicture:
    """Decode one picture and bring it to the encoder's size, all of that in the other process.

    image_size: the longest side; patch_size: the sides become multiples of it. The other arguments and errors
    are those of read_image. Pictures that need long wait behind each other, and others do not.
    """
    _, width, height, content = _ask(source, name, limits, (image_size, patch_size), shared=True)
    across, down = image_grid(width, height, image_size, patch_size)
    pixels = np.frombuffer(content, np.float32).reshape(3, down * patch_size, across * patch_size)
    return FittedPicture((width, height), pixels)


def _ask(
    source: bytes | Path | BinaryIO,
    name: str,
    limits: ImageLimits,
    fit: tuple[int, int] | None,
    *,
    shared: bool = False,
) -> tuple[bytes, int, int, bytearray]:
    """Check the bytes and have them decoded."""
    if not name.isprintable():
        name = ascii(name)
    data = read_bytes(source, name, limits)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); give a picture in {READABLE}")
    if detect(data) is None:
        if is_document(data):
            raise ImageError(f"{name} is a PDF, not a picture; give its pages as pictures")
        raise ImageError(f"{name} is not a picture that pixedge can read; give {READABLE}")
    try:
        task = {"name": name, "limits": asdict(limits), "fit": fit}
        answer = PROCESSES.ask(task, data, limits.max_pixels, shared=shared)
    except ProcessEndedError as error:
        if error.over_time:
            raise ImageError(f"{name} takes too long to decode for its size; save it again as PNG") from None
        raise ImageError(
            f"{name} cannot be decoded (the library crashed or ran out of memory); save it again as PNG"
        ) from None
    if answer[0] in (b"E", b"T"):
        raise (TooManyPixelsError if answer[0] == b"T" else ImageError)(answer[3].decode("utf-8"))
    return answer


def read_bytes(source: bytes | Path | BinaryIO, name: str, limits: ImageLimits) -> bytes:
    """Return a file's bytes, never more than limits.max_bytes of them.

    source and name as `read_image` has them. Raises ImageError where the file is missing, unreadable or too
    large; what the bytes are is not looked at.
    """
    if isinstance(source, bytes):
        if len(source) > limits.max_bytes:
            raise _too_many_bytes(name, f"has {len(source):,} bytes", limits)
        return source
    try:
        if not isinstance(source, Path):
            return _read_bounded(source, name, limits)
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder; give a picture file, or a pattern such as {name}/*.jpg")
        if stat.S_ISFIFO(status.st_mode):
            with NamedPipe(source) as pipe:
                return _read_bounded(pipe, name, limits)
        if (what := irregular(str(source))) is not None:
            raise ImageError(f"{name} is {what}; give a picture file")
        if status.st_size > limits.max_bytes:
            raise _too_many_bytes(name, f"has {status.st_size:,} bytes", limits)
        with source.open("rb") as file:
            return _read_bounded(file, name, limits)
    except FileNotFoundError:
        if isinstance(source, Path) and source.is_symlink():
            raise ImageError(f"{name} is a link that leads nowhere; give a picture file") from None
        raise ImageError(f"{name} does not exist; check the path") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read (permission denied); change its permissions") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read ({reason}); check the file") from error


def _read_bounded(stream: BinaryIO | NamedPipe, name: str, limits: ImageLimits) -> bytes:
    """Read to the end, but never more than a byte over the limit: a pipe does not tell its size."""
    parts: list[bytes] = []
    room = limits.max_bytes + 1
    while room > 0 and (part := stream.read(min(room, 1 << 20))):
        parts.append(part)
        room -= len(part)
    if room <= 0:
        raise _too_many_bytes(name, f"has at least {limits.max_bytes + 1:,} bytes", limits)
    return b"".join(parts)


def _too_many_bytes(name: str, found: str, limits: ImageLimits) -> ImageError:
    return ImageError(f"{name} {found} and the limit is {limits.max_bytes:,}; make the file smaller")


def is_document(data: bytes) -> bool:
    """Whether the bytes are a PDF, whatever their file is called; see pixedge.documents."""
    return b"%PDF-" in data[:_PDF_HEADER_WITHIN]


def image_grid(width: int, height: int, image_size: int, patch_size: int) -> tuple[int, int]:
    """Count the patches across and down for a picture, as mistral_common's ImageEncoder counts them.

    The longer side is brought down to image_size where it is greater; smaller pictures are not enlarged. Each
    side is then rounded up to whole patches, and is at least one.
    """
    ratio = max(height / image_size, width / image_size)
    if ratio > 1:
        width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
    return (width - 1) // patch_size + 1, (height - 1) // patch_size + 1


def to_pixels(image: Image.Image, vision: VisionConfig, max_image_size: int | None = None) -> np.ndarray:
    """Resize and normalise an RGB picture: float32 [3, H, W], C-contiguous, H and W multiples of the patch.

    max_image_size lowers the encoder's longest side further, to spend fewer tokens; a greater value changes
    nothing. Raises UsageError where it is less than 1.
    """
    if max_image_size is not None and max_image_size < 1:
        raise UsageError(f"The largest image size is {max_image_size}; give at least 1 pixel")
    image_size = min(max_image_size or vision.image_size, vision.image_size)
    return fit_pixels(image, image_size, vision.patch_size)


def fit_pixels(image: Image.Image, image_size: int, patch_size: int) -> np.ndarray:
    """Resize an RGB picture (bicubic, to whole patches) and normalise it by CLIP's mean and deviation.

    Returns float32 [3, H, W], the pixels that mistral_common's tokenizer makes; above 8 megapixels they may
    differ in the last bit, because such a picture is resized in bands.
    """
    import cv2

    across, down = image_grid(image.width, image.height, image_size, patch_size)
    width, height = across * patch_size, down * patch_size
    if image.width * image.height <= _BANDS_ABOVE:
        whole = np.asarray(image, np.float32)
        pixels = cv2.resize(whole, (width, height), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
    else:
        pixels = np.stack([_resize_channel(image, channel, width, height) for channel in range(3)])
    pixels = pixels / np.float32(255)
    pixels -= np.array(_MEAN, np.float32)[:, None, None]
    pixels /= np.array(_DEVIATION, np.float32)[:, None, None]
    return np.ascontiguousarray(pixels, np.float32)


def _resize_channel(image: Image.Image, channel: int, width: int, height: int) -> np.ndarray:
    """Resize one channel, its longer side first and in bands: float32 [height, width]."""
    import cv2

    tall = image.height > image.width
    long, short = max(image.size), min(image.size)
    narrow = np.empty((height, short) if tall else (short, width), np.float32)
    lines = max(1, _BAND // long)
    for start in range(0, short, lines):
        end = min(start + lines, short)
        box = (start, 0, end, long) if tall else (0, start, long, end)
        band = np.asarray(image.crop(box).getchannel(channel), np.float32)
        size = (end - start, height) if tall else (width, end - start)
        place = (slice(None), slice(start, end)) if tall else (slice(start, end),)
        narrow[place] = cv2.resize(band, size, interpolation=cv2.INTER_CUBIC)
    resized: np.ndarray = cv2.resize(narrow, (width, height), interpolation=cv2.INTER_CUBIC)
    return resized


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 over type, shape and bytes, in hex: the key under which a picture's embeddings are kept."""
    digest = hashlib.sha256(f"{pixels.dtype.str}{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
