"""Text that carries the sha256 of itself, so that a changed bit is found without another file that says so.

The digest is that of the text with 64 zeros in the digest's place.
"""

import hashlib
import re

KEY = "digest"
UNSIGNED = "0" * 64
_PLACE = re.compile(rb'"digest": "([0-9a-f]{64})"')


def sign(data: bytes) -> bytes:
    """Fill in the digest of JSON text that has UNSIGNED under KEY, as Python's json module writes it."""
    assert _PLACE.findall(data) == [UNSIGNED.encode()], "one place for the digest, and unsigned"
    digest = hashlib.sha256(data).hexdigest().encode()
    return _PLACE.sub(b'"digest": "%s"' % digest, data)


def is_as_signed(data: bytes) -> bool:
    """Tell whether text has a digest, and is what was signed."""
    found = _PLACE.search(data)
    if found is None or len(_PLACE.findall(data)) != 1:
        return False
    unsigned = _PLACE.sub(b'"digest": "%s"' % UNSIGNED.encode(), data)
    return hashlib.sha256(unsigned).hexdigest().encode() == found[1]
