"""The orientation out of a block of EXIF; nothing else of it is looked at."""

import struct

_ORIENTATION = 0x0112
_SHORT = 3
_MOST_TAGS = 1000


def orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that a TIFF directory names; 1 where it is damaged or names none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for index in range(min(count, _MOST_TAGS)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, at + 2 + 12 * index)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
