"""GIF: the first frame goes to Pillow; extensions before it are stepped over."""

import struct

from PIL import GifImagePlugin

from pixedge.picture_formats import Allow, Decoded, EndOfFileError, TooMuchError, WholeFile

# What animation programs write before the first frame is a handful.
_MOST_BLOCKS = 100_000
_GRAPHIC_CONTROL = 0xF9


def decode(data: bytes, allow: Allow) -> Decoded:
    """Decode the first frame on the screen's canvas."""
    try:
        head, frame = _split(data)
        left, top, width, height = struct.unpack_from("<4H", data, frame + 1)
    except (IndexError, struct.error):
        raise EndOfFileError from None
    screen = struct.unpack_from("<HH", data, 6)
    allow(max(screen[0], left + width), max(screen[1], top + height))
    with GifImagePlugin.GifImageFile(WholeFile(head + data[frame:])) as image:
        image.load()
        return Decoded(image)


def _split(data: bytes) -> tuple[bytes, int]:
    """Return header, colours and the frame's graphic control, and where the first frame begins."""
    flags = data[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head, control = data[:at], b""
    for _ in range(_MOST_BLOCKS):
        if data[at] == 0x2C:
            return head + control, at
        if data[at] != 0x21:  # Pillow steps over such bytes, too
            at += 1
            continue
        start, label = at, data[at + 1]
        at += 2
        for _ in range(_MOST_BLOCKS):
            if not data[at]:
                break
            at += 1 + data[at]
        else:
            raise TooMuchError(f"more than {_MOST_BLOCKS:,} blocks before its picture")
        at += 1
        if label == _GRAPHIC_CONTROL and at - start == 8:
            control = data[start:at]
    raise TooMuchError(f"more than {_MOST_BLOCKS:,} blocks before its picture")
