"""Names for the pages of a text: equal names mean equal keys and values.

What a page holds follows from its tokens and all tokens before them, and for an [IMG] token from the picture
that it stands for. So a page's name is the SHA-256 of the name before it and of its tokens, an [IMG] token
being its picture's hash and its place in it: the same text behind another picture has other names.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from pixedge.kernels.attention import PAGE


def hash_picture(pixels: np.ndarray) -> bytes:
    """Return the SHA-256 of pixels float32 [3, H, W] and their shape."""
    digest = hashlib.sha256(repr((pixels.shape, str(pixels.dtype))).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


class PageNames:
    """The names of one growing text's full pages."""

    def __init__(self, ids: Iterable[int], pictures: Iterable[tuple[bytes, np.ndarray]]) -> None:
        """Begin with a prompt's ids; each picture is its hash and the places of its [IMG] tokens in them."""
        self._tokens = [b"t" + token.to_bytes(4, "little") for token in ids]
        for picture, places in pictures:
            for patch, place in enumerate(places.tolist()):
                self._tokens[place] = b"p" + picture + patch.to_bytes(4, "little")
        self._names: list[bytes] = []

    def append(self, token: int) -> None:
        """Add a token of the answer."""
        self._tokens.append(b"t" + token.to_bytes(4, "little"))

    def first(self, count: int) -> list[bytes]:
        """Return the names of the first ``count`` pages, all of them full."""
        assert count * PAGE <= len(self._tokens)
        for page in range(len(self._names), count):
            before = self._names[-1] if self._names else b""
            tokens = b"".join(self._tokens[page * PAGE : (page + 1) * PAGE])
            self._names.append(hashlib.sha256(before + tokens).digest())
        return self._names[:count]
