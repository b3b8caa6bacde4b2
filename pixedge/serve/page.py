"""The page at / and the headers that confine it to its own script and style and to this server.

The Content-Security-Policy names the script and the style by their SHA-256, so nothing that finds its way
into the page can run, and ``require-trusted-types-for`` makes browsers refuse the functions that turn text
into markup or code.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pixedge.picture_formats import ENDINGS, FORMATS, READABLE

_FILE = Path(__file__).with_name("page.html")
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """What a GET of / is answered with."""

    body: bytes
    headers: Mapping[str, str]


def load_page() -> Page:
    """Read the page and compute its headers."""
    accept = ",".join([*(media for each in FORMATS for media in each.media_types), *sorted(ENDINGS)])
    body = _FILE.read_bytes()
    body = body.replace(b"{{accept}}", accept.encode()).replace(b"{{readable}}", READABLE.encode())
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, text in _INLINE.findall(body):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'")
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(hashes[b"script"]),
        "style-src": " ".join(hashes[b"style"]),
        "img-src": "blob: data:",  # thumbnails, and the icon
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-cache",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    return Page(body, headers)
