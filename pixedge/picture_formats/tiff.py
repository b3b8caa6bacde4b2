"""TIFF 6.0 and BigTIFF: the tags that describe the picture go to Pillow in a directory of their own.

Grey deeper than 8 bits is read here: Pillow knows some combinations of byte order, sign and photometric
interpretation, misses others and takes WhiteIsZero for its negative. Pillow is told that such a picture has
8-bit samples, as many as it has bytes, and so does no more than to unpack; numpy does the rest.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, TiffImagePlugin

from pixedge.picture_formats import Allow, Decoded, EndOfFileError, TooMuchError, UnsupportedError, WholeFile
from pixedge.picture_formats.grey import to_8_bits

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
PLANES, PREDICTOR, COLOURS, TILE_WIDTH, TILE_LENGTH = 284, 317, 320, 322, 323
TILE_OFFSETS, TILE_BYTES, EXTRA, FORMAT, JPEG_TABLES = 324, 325, 338, 339, 347
_FILL_ORDER, _SUBSAMPLING = 266, 530
_TAGS = {
    *(WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, _FILL_ORDER, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP),
    *(STRIP_BYTES, PLANES, 292, 293, PREDICTOR, COLOURS, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES),
    *(EXTRA, FORMAT, JPEG_TABLES, 529, _SUBSAMPLING, 531, 532),
    *(512, 513, 514, 515, 517, 518, 519, 520, 521),  # of the JPEG compression before TIFF 6.0 was amended
}
_ONE_VALUE = {WIDTH, LENGTH, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS_PER_STRIP, TILE_WIDTH, TILE_LENGTH}
_MOST_TAGS = 10_000
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_SIZES = {2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8, 13: 4, 18: 8} | {
    kind: struct.calcsize(code) for kind, code in _CODES.items()
}
_OLD_JPEG, _JPEG = 6, 7
# CCITT, LZW, JPEG, deflate, PackBits, LZMA, Zstandard and WebP
_COMPRESSIONS = {1, 2, 3, 4, 5, _OLD_JPEG, _JPEG, 8, 32773, 32946, 34925, 50000, 50001}

# These a libtiff may be built without: in Pillow's wheels it has no WebP.
_OPTIONAL = {34925: "lzma", 50000: "zstd", 50001: "webp"}


@dataclass(frozen=True)
class _Tag:
    """A tag's type, the number of its values, and their bytes."""

    kind: int
    count: int
    data: bytes


class _Directory:
    """The first directory of a file."""

    def __init__(self, data: bytes) -> None:
        """Read the tags that the picture needs."""
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = data[2:4] in (b"+\0", b"\0+")
        self._long = "Q" if self.big else "I"
        try:
            (at,) = struct.unpack_from(self.order + self._long, data, 8 if self.big else 4)
            (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), data, at)
            at += 8 if self.big else 2
            if count > _MOST_TAGS:
                raise TooMuchError(f"more than {_MOST_TAGS:,} tags")
            self.tags: dict[int, _Tag] = {}
            for index in range(count):
                self._read_tag(data, at + index * (20 if self.big else 12))
        except struct.error:
            raise EndOfFileError from None

    def _read_tag(self, data: bytes, at: int) -> None:
        tag, kind, count = struct.unpack_from(self.order + "HH" + self._long, data, at)
        size = _SIZES.get(kind, 1) * count
        if tag == ORIENTATION and kind == 3:
            size = 2
        elif tag not in _TAGS or kind not in _SIZES or tag in self.tags:
            return
        at += 12 if self.big else 8
        if size > (8 if self.big else 4):
            (at,) = struct.unpack_from(self.order + self._long, data, at)
        if at + size > len(data):
            raise EndOfFileError
        self.tags[tag] = _Tag(kind, count, data[at : at + size])

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return a tag's whole numbers."""
        found = self.tags.get(tag)
        if found is None or found.kind not in _CODES:
            return default
        return struct.unpack(f"{self.order}{found.count}{_CODES[found.kind]}", found.data) or default

    def value(self, tag: int, default: int) -> int:
        """Return a tag's first whole number."""
        return self.values(tag, (default,))[0]

    def put(self, tag: int, *values: int) -> None:
        """Set a tag to whole numbers below 2^32."""
        self.tags[tag] = _Tag(4, len(values), struct.pack(f"{self.order}{len(values)}I", *values))

    def file(self, data: bytes) -> bytes:
        """Return the file as a classic TIFF with this directory alone; Pillow reads only some BigTIFFs."""
        for tag, each in list(self.tags.items()):
            if each.kind in (16, 17):
                self.put(tag, *self.values(tag))
        at = len(data) + len(data) % 2
        size = 2 + len(self.tags) * 12 + 4
        entries, beside = [], b""
        for tag, each in sorted(self.tags.items()):
            content = each.data.ljust(4, b"\0")
            if len(content) > 4:
                content = struct.pack(self.order + "I", at + size + len(beside))
                beside += each.data + bytes(len(each.data) % 2)
            entries.append(struct.pack(self.order + "HHI", tag, each.kind, each.count) + content)
        head = struct.pack(self.order + "2sHI", data[:2], 42, at)
        count = struct.pack(self.order + "H", len(entries))
        return b"".join((head, data[8:], bytes(len(data) % 2), count, *entries, bytes(4), beside))


def decode(data: bytes, allow: Allow) -> Decoded:
    """Decode the first picture of the file."""
    directory = _Directory(data)
    turned = directory.value(ORIENTATION, 1)
    directory.tags.pop(ORIENTATION, None)
    width, height = directory.value(WIDTH, 0), directory.value(LENGTH, 0)
    if width < 1 or height < 1:
        raise ValueError(f"{width} x {height} pixels")
    allow(width, height)
    if TILE_WIDTH in directory.tags:
        allow(directory.value(TILE_WIDTH, 1), directory.value(TILE_LENGTH, 1))  # one is decoded whole
    if directory.value(COMPRESSION, 1) not in _COMPRESSIONS:
        raise UnsupportedError(f"with the compression {directory.value(COMPRESSION, 1)}")
    for tag in _ONE_VALUE & directory.tags.keys():
        directory.put(tag, directory.value(tag, 1))
    _check_pieces(directory, data, width, height)
    kind = _deep_grey(directory)
    if kind is not None:
        image = _read_grey(directory, data, width, height, *kind)
    else:
        image = _load(directory.file(data), directory.value(COMPRESSION, 1))
    return Decoded(image, turned)


def _load(file: bytes, compression: int) -> Image.Image:
    try:
        image = TiffImagePlugin.TiffImageFile(WholeFile(file))
    except (SyntaxError, KeyError) as error:
        raise UnsupportedError(f"({_said(error)})") from None
    with image:
        try:
            image.load()
        except OSError:
            if compression in _OPTIONAL and not _is_built_in(_OPTIONAL[compression]):
                raise UnsupportedError(f"with {_OPTIONAL[compression]} compression") from None
            raise
        return image


def _is_built_in(compression: str) -> bool:
    """Whether Pillow's libtiff has a codec, which it does not tell: write a pixel with it."""
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), "TIFF", compression=compression)
    except OSError:
        return False
    return True


def _said(error: Exception) -> str:
    return "unknown " + str(error) if isinstance(error, KeyError) else str(error)


def _check_pieces(directory: _Directory, data: bytes, width: int, height: int) -> None:
    """Refuse strips and tiles that make more work than the picture is worth; drop those beyond it."""
    tiled = TILE_OFFSETS in directory.tags
    across = directory.value(TILE_WIDTH, width) if tiled else width
    down = directory.value(TILE_LENGTH, height) if tiled else directory.value(ROWS_PER_STRIP, height)
    if across < 1 or down < 1:
        raise ValueError(f"pieces of {across} x {down} pixels")
    planes = directory.value(SAMPLES, 1) if directory.value(PLANES, 1) == 2 else 1
    count = -(-width // across) * -(-height // min(down, height)) * planes
    # A piece costs about 15 µs: so many take no longer than the picture is worth.
    most = 20_000 + width * height // 256
    if count > most:
        raise TooMuchError(f"{count:,} strips or tiles, and its size allows {most:,}")
    offsets, sizes = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
    places, lengths = directory.values(offsets), directory.values(sizes)
    if len(places) < count:
        raise EndOfFileError
    if max(places[:count]) < 1 << 32:
        directory.put(offsets, *places[:count])
    if directory.value(COMPRESSION, 1) == 1:
        samples = directory.value(SAMPLES, 1) // planes if planes > 1 else directory.value(SAMPLES, 1)
        row = -(-across * samples * directory.value(BITS, 1) // 8)
        columns = -(-width // across)
        for index, place in enumerate(places[:count]):
            top = index // columns * down % (-(-height // down) * down)
            if place + row * min(down, height - top) > len(data):
                raise EndOfFileError
        return
    if len(lengths) >= count and max(lengths[:count]) < 1 << 32:
        directory.put(sizes, *lengths[:count])
        if sum(lengths[:count]) > 2 * len(data):
            raise TooMuchError("strips or tiles that lie over each other")
        if any(place + length > len(data) for place, length in zip(places[:count], lengths, strict=False)):
            raise EndOfFileError
    elif count > 1:
        raise ValueError("no sizes of its strips or tiles")
    if directory.value(COMPRESSION, 1) in (_OLD_JPEG, _JPEG):
        scans, pixels = data.count(b"\xff\xda"), across * min(down, height)
        if scans * pixels > 32 * (width * height + pixels):
            raise TooMuchError(f"{scans} JPEG scans")


# Grey


def _deep_grey(directory: _Directory) -> tuple[np.dtype, int] | None:
    """Return type and bits of grey samples that are read here; None leaves the picture to Pillow."""
    bits, sign = directory.value(BITS, 1), directory.value(FORMAT, 1)
    if directory.value(SAMPLES, 1) != 1 or directory.value(PHOTOMETRIC, 0) not in (0, 1):
        return None
    code = {1: "u", 2: "i", 3: "f", 4: "u"}.get(sign)
    if code == "u" and bits in (1, 2, 4, 8):
        if sign == 4:
            directory.put(FORMAT, 1)
        return None
    if directory.value(COMPRESSION, 1) not in (1, 5, 8, 32773, 32946, 34925, 50000):
        raise UnsupportedError(f"with {bits} bits a sample")
    if code == "u" and bits == 12:
        return np.dtype(np.uint16), 12
    if code is None or bits not in ((16, 32, 64) if code == "f" else (8, 16, 32, 64)):
        kinds = {"u": "unsigned", "i": "signed", "f": "float"}
        raise UnsupportedError(f"with {kinds.get(code or '', 'complex')} samples of {bits} bits")
    return np.dtype(f"{directory.order}{code}{bits // 8}"), bits


def _read_grey(
    directory: _Directory, data: bytes, width: int, height: int, kind: np.dtype, bits: int
) -> Image.Image:
    predictor = directory.value(PREDICTOR, 1) if directory.value(COMPRESSION, 1) != 1 else 1
    inverted = directory.value(PHOTOMETRIC, 0) == 0
    piece = directory.value(TILE_WIDTH, width) if TILE_OFFSETS in directory.tags else width
    if bits == 12 and (predictor != 1 or (piece % 2 and piece != width)):
        raise UnsupportedError("with 12 bits a sample and a predictor")
    for tag in (PREDICTOR, FORMAT):
        directory.tags.pop(tag, None)
    row = -(-width * bits // 8)
    directory.put(WIDTH, row)
    directory.put(BITS, 8)
    directory.put(PHOTOMETRIC, 1)
    if TILE_OFFSETS in directory.tags:
        directory.put(TILE_WIDTH, -(-piece * bits // 8))
    unpacked = np.asarray(_load(directory.file(data), directory.value(COMPRESSION, 1)))  # [height, bytes]
    if bits == 12:
        return Image.fromarray(to_8_bits(_twelve_bits(unpacked, width), inverted, 4095))
    if predictor == 3:
        samples = _undo_floats(unpacked, width, piece, kind)
    else:
        samples = np.ascontiguousarray(unpacked).view(kind)
        if predictor == 2:
            samples = _undo_differences(samples, piece)
        elif predictor != 1:
            raise UnsupportedError(f"with the predictor {predictor}")
    return Image.fromarray(to_8_bits(samples, inverted))


def _twelve_bits(row: np.ndarray, width: int) -> np.ndarray:
    """Unpack pairs of samples from three bytes each: [height, bytes] to uint16 [height, width]."""
    padded = np.pad(row, ((0, 0), (0, -row.shape[1] % 3))).astype(np.uint16)
    first, middle, last = padded[:, 0::3], padded[:, 1::3], padded[:, 2::3]
    pairs = np.stack((first << 4 | middle >> 4, (middle & 15) << 8 | last), -1)
    return pairs.reshape(len(row), -1)[:, :width]


def _undo_differences(samples: np.ndarray, piece: int) -> np.ndarray:
    """Undo predictor 2: each sample is the difference to the one before it, within a strip or tile."""
    bits = samples.dtype.itemsize * 8
    whole = samples.view(f"{samples.dtype.byteorder.replace('|', '=')}u{bits // 8}")
    result = whole.astype(f"=u{bits // 8}")
    for left in range(0, result.shape[1], piece):
        part = result[:, left : left + piece]
        np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    return result.view(f"={samples.dtype.kind}{bits // 8}")


def _undo_floats(row: np.ndarray, width: int, piece: int, kind: np.dtype) -> np.ndarray:
    """Undo predictor 3 (Adobe Photoshop TIFF Technical Note 3): differences of bytes, most significant first.

    A tile at the right edge reaches beyond the picture, where Pillow has cut off bytes that are needed.
    """
    if width % piece:
        raise UnsupportedError("with tiles of differences of floats")
    size = kind.itemsize
    whole = row.reshape(len(row), -1, size * piece)  # [height, tiles, bytes]
    summed = np.cumsum(whole, axis=2, dtype=np.uint8)
    planes = summed.reshape(len(row), -1, size, piece)
    samples = np.ascontiguousarray(np.moveaxis(planes, 2, 3)).view(f">f{size}")
    return samples.reshape(len(row), width)
