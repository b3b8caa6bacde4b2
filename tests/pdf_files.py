"""PDF files for tests, written byte by byte, so that they can also be wrong."""

import hashlib
from pathlib import Path

# ISO 32000-1, algorithm 2: what fills a password up to 32 bytes.
_PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")


def pdf(*objects: bytes, trailer: bytes = b"") -> bytes:
    """Give a PDF of numbered objects, the first of them the catalog."""
    data, starts = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        starts.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % start for start in starts)
    size = len(objects) + 1
    return (
        data
        + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Root 1 0 R /Size %d %s >>\nstartxref\n%d\n%%%%EOF"
        % (
            size,
            table,
            size,
            trailer,
            len(data),
        )
    )


def stream(content: bytes, entries: bytes = b"") -> bytes:
    """Give a stream object."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), entries, content)


def pages(*contents: bytes, size: tuple[float, float] = (200, 100), entries: bytes = b"") -> bytes:
    """Give a PDF with one page for each content stream; size in points, entries go into every page."""
    kids = b" ".join(b"%d 0 R" % (3 + 2 * index) for index in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents)),
    ]
    for index, content in enumerate(contents):
        box = b"[0 0 %g %g]" % size
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Contents %d 0 R %s >>"
            % (box, 4 + 2 * index, entries),
            stream(content),
        ]
    return pdf(*objects)


def coloured(*colours: tuple[float, float, float]) -> bytes:
    """Give a PDF with a page for each colour (red, green, blue from 0 to 1), whose left half it fills."""
    return pages(*[b"%g %g %g rg 0 0 100 100 re f" % colour for colour in colours])


def encrypted(password: bytes) -> bytes:
    """Give a PDF that opens with a password only (standard handler, revision 2, RC4 of 40 bits)."""
    identifier, permissions = bytes(16), -4
    padded = (password + _PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + permissions.to_bytes(4, "little", signed=True) + identifier).digest()[
        :5
    ]
    user = _rc4(key, _PADDING)
    handler = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P %d >>" % (
        owner.hex().encode(),
        user.hex().encode(),
        permissions,
    )
    trailer = b"/Encrypt %s /ID [<%s> <%s>]" % (handler, *[identifier.hex().encode()] * 2)
    return pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] >>",
        trailer=trailer,
    )


def write(path: Path, data: bytes) -> Path:
    """Write data to path and return path."""
    path.write_bytes(data)
    return path


def _rc4(key: bytes, data: bytes) -> bytes:
    state, at = list(range(256)), 0
    for index in range(256):
        at = (at + state[index] + key[index % len(key)]) % 256
        state[index], state[at] = state[at], state[index]
    out, first, second = bytearray(), 0, 0
    for byte in data:
        first = (first + 1) % 256
        second = (second + state[first]) % 256
        state[first], state[second] = state[second], state[first]
        out.append(byte ^ state[(state[first] + state[second]) % 256])
    return bytes(out)
