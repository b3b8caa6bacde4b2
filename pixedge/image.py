"""Pictures from strangers: untrusted bytes to RGB under limits, and RGB to the encoder's pixels.

    bytes ── size cap ── header: format, pixel cap ── decode ── upright, opaque, 8-bit RGB ── pixels [3, H, W]

Pillow's format classes are called directly, on bytes held in memory, instead of through ``Image.open``:
no other plugin (EPS starts Ghostscript) can run, no library opens a path or a URL by itself, and Pillow's
decompression-bomb warning, whose only switch is one global for the whole process, is replaced by our own
check of the header. Everything that goes wrong with a picture is an `ImageError` that names it.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pixedge.errors import ImageError, UsageError
from pixedge.named_pipe import NamedPipe
from pixedge.path_patterns import irregular

if TYPE_CHECKING:
    from pixedge.config import VisionConfig

_LOADERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_READABLE = "JPEG, PNG, WebP, GIF, TIFF, BMP or HEIC"

# The file is damaged, so getting it again is what helps.
_GET_AGAIN = "copy or download it again"

# The last chunk of every PNG, with its checksum. Pillow does not miss it once it has the pixels.
_PNG_END = b"IEND\xaeB`\x82"

# ISO 32000-1, Annex H, note 13: readers accept the header anywhere within the first 1024 bytes.
_PDF_HEADER_WITHIN = 1024

# A progressive JPEG has about ten scans; each one walks the whole picture, so thousands of empty ones in a
# small file would keep the decoder busy for hours.
_MAX_JPEG_SCANS = 500

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow remarks on broken metadata (EXIF above all) through UserWarning. That says nothing about the picture,
# so it is hidden from people who have not asked for warnings: appended, any filter of theirs comes first.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w+ImagePlugin", append=True)


class TooManyPixelsError(ImageError):
    """A picture whose header names more pixels than allowed; nothing of it was decoded."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost before it is decoded.

    max_bytes: size of the file. max_pixels: width times height, of TIFF and GIF never more than Pillow's own
    limit (89,478,485 unless changed), which Pillow enforces while it decodes these two. max_images: pictures
    in one conversation. At the default limits a decoded picture takes up to 0.4 GB, and resizing it to the
    encoder's size, which happens in float32, another 1.5 GB for that moment.
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


def read_image(source: bytes | Path | BinaryIO, name: str, limits: ImageLimits) -> Image.Image:
    """Decode one picture: first frame, upright, over white, 8-bit RGB, without metadata.

    source is the bytes of the file, its path, or a binary stream; name is what errors call it. Formats: JPEG,
    PNG, WebP, GIF, TIFF, BMP, and HEIC where pillow_heif is installed. Grey of 16 or 32 bits and floats are
    scaled to 8 bits, as `_grey_to_8_bits` says. Colour profiles are not applied.

    Raises ImageError for a missing, unreadable, empty, truncated, damaged or too large file, and for one that
    is not a picture. The limits are checked before the file is read whole and before it is decoded.
    """
    if not name.isprintable():
        name = ascii(name)
    data = read_bytes(source, name, limits)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); give a picture in {_READABLE}")
    kind = _kind(data)
    if kind is None and is_document(data):
        raise ImageError(f"{name} is a PDF, not a picture; give its pages as pictures")
    if kind is None:
        raise ImageError(f"{name} is not a picture that pixedge can read; give {_READABLE}")
    if kind == "JPEG" and (scans := data.count(b"\xff\xda")) > _MAX_JPEG_SCANS:
        raise ImageError(
            f"{name} has {scans} JPEG scans and the limit is {_MAX_JPEG_SCANS}; save it again as PNG"
        )
    loader = _heic_loader(name) if kind == "HEIC" else _LOADERS[kind]
    try:
        return _decode(loader, kind, data, name, limits)
    except ImageError:
        raise
    except _EndOfFile:
        raise ImageError(
            f"{name} is truncated: the {kind} ends after {len(data):,} bytes; {_GET_AGAIN}"
        ) from None
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory while being decoded; make it smaller") from None
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} cannot be decoded as {kind} ({reason}); {_GET_AGAIN}") from error


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


def _kind(data: bytes) -> str | None:
    """Name the format by its first bytes; a file's name says nothing."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:2] == b"BM":
        return "BMP"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC"
    return None


def is_document(data: bytes) -> bool:
    """Whether the bytes are a PDF, whatever their file is called; see pixedge.documents."""
    return b"%PDF-" in data[:_PDF_HEADER_WITHIN]


def _heic_loader(name: str) -> type[ImageFile.ImageFile]:
    try:
        loader: type[ImageFile.ImageFile] = importlib.import_module("pillow_heif").HeifImageFile
    except ImportError:
        raise ImageError(
            f"{name} is HEIC, which needs an extra package; run: pip install 'pixedge[heic]'"
        ) from None
    return loader


class _EndOfFile(Exception):
    """A decoder asked for bytes after the end."""


class _Bytes(io.BytesIO):
    """The file in memory; reading on at its end is an error.

    Pillow notices a short file too, but keeps silent when ImageFile.LOAD_TRUNCATED_IMAGES is set, and any
    library in the process may set it. No format's decoder reads on where the file is whole.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data and size is not None and size > 0:
            raise _EndOfFile
        return data


def _decode(
    loader: type[ImageFile.ImageFile], kind: str, data: bytes, name: str, limits: ImageLimits
) -> Image.Image:
    if kind in ("WebP", "GIF"):  # both plugins act on the size while they open the file
        _check_pixels(_webp_size(data) if kind == "WebP" else _gif_size(data), kind, name, limits)
    elif kind == "PNG" and _PNG_END not in data:
        raise _EndOfFile
    with loader(_Bytes(data)) as image:
        _check_pixels(image.size, kind, name, limits)
        if kind == "TIFF" and isinstance(image, TiffImagePlugin.TiffImageFile):
            tile = (
                image.tag_v2.get(322, 1),
                image.tag_v2.get(323, 1),
            )  # TileWidth, TileLength: one is decoded whole
            _check_pixels(tile, kind, name, limits)
        # How the file stores a sample; known only until the pixels are loaded.
        stored = image.tile[0].args if kind == "PNG" and image.tile else None
        image.load()
        if "transparency" in image.info:
            image.info["transparency"] = _scaled_colour_key(image.info["transparency"], stored)
        orientation = _orientation(image)
        rgb = _to_rgb(image, name)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info.clear()
    return rgb


def _check_pixels(size: tuple[int, int] | None, kind: str, name: str, limits: ImageLimits) -> None:
    limit = limits.max_pixels
    if kind in ("TIFF", "GIF") and Image.MAX_IMAGE_PIXELS is not None:
        limit = min(limit, Image.MAX_IMAGE_PIXELS)  # Pillow warns beyond this while decoding these two
    if size is not None and size[0] * size[1] > limit:
        raise TooManyPixelsError(
            f"{name} has {size[0] * size[1]:,} pixels ({size[0]} x {size[1]}) and the limit is {limit:,}; "
            "make the picture smaller"
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas size from a WebP header (RFC 9649); None where it is damaged, for the decoder to report."""
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise _EndOfFile
    if len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """Size that holds a GIF's screen and its first frame; None where it is damaged."""
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        while data[at] != 0x2C:  # until the first image descriptor
            at += 1
            if data[at - 1] == 0x21:  # an extension: a label, then blocks up to an empty one
                at += 1
                while data[at]:
                    at += 1 + data[at]
                at += 1
        left, top, frame_width, frame_height = struct.unpack_from("<4H", data, at + 1)
    except (IndexError, struct.error):
        return None
    return max(width, left + frame_width), max(height, top + frame_height)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Damaged metadata does not make a picture unusable."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _scaled_colour_key(key: Any, stored: Any) -> Any:
    """Bring a PNG's transparent colour (tRNS) to the range that Pillow expands the samples to."""
    if stored == "RGB;16B":  # Pillow keeps the high bytes only, so colours that share them go together
        return tuple(value >> 8 for value in key)
    if stored in ("L;2", "L;4"):
        return key * (85 if stored == "L;2" else 17)
    return key


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)  # [height, width]
        grey = _grey_to_8_bits(values, image.mode, name)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _grey_to_8_bits(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Scale deep grey values to uint8, same shape.

    16-bit values keep their full range, 65535 -> 255. 32-bit integers are taken as 8-bit or 16-bit values
    where they fit, and floats between 0 and 1 as shares of white; anything else is spread between its own
    least and greatest value. Raises ImageError for NaN and infinity.
    """
    if mode.startswith("I;16"):
        table = np.rint(np.arange(65536) / 257).astype(np.uint8)
        return np.take(table, values)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name} has pixels that are not numbers (NaN or infinity); save it as 8-bit PNG")
    for white in (1.0,) if mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= white:
            low, high = 0.0, white
            break
    scaled = values.astype(np.float64)
    scaled -= low
    scaled *= 255 / ((high - low) or 1.0)
    return np.rint(scaled, out=scaled).astype(np.uint8)


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

    The resizing (bicubic, to whole patches) and the normalisation (CLIP's mean and deviation) are
    mistral_common's own, so pixels are those that the tokenizer makes. max_image_size lowers the encoder's
    longest side further, to spend fewer tokens; a greater value changes nothing. Raises UsageError where it
    is less than 1.
    """
    # Brings OpenCV in, which only this function needs.
    from mistral_common.tokens.tokenizers.image import transform_image

    if max_image_size is not None and max_image_size < 1:
        raise UsageError(f"The largest image size is {max_image_size}; give at least 1 pixel")
    image_size = min(max_image_size or vision.image_size, vision.image_size)
    across, down = image_grid(image.width, image.height, image_size, vision.patch_size)
    pixels = transform_image(image, (across * vision.patch_size, down * vision.patch_size))
    return np.ascontiguousarray(pixels, dtype=np.float32)


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 over type, shape and bytes, in hex: the key under which a picture's embeddings are kept."""
    digest = hashlib.sha256(f"{pixels.dtype.str}{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
