"""A file that is read whole: a schema, a key, a conversation; never without end, and a pipe as well."""

import errno
from pathlib import Path

from pixedge.named_pipe import NamedPipe

_MOST = 64 << 20


def read_small_file(file: Path) -> bytes:
    """Return a file's bytes; raises OSError, for more than 64 MiB and a pipe without a writer too."""
    with NamedPipe(file) if file.is_fifo() else file.open("rb") as stream:
        parts, room = [], _MOST + 1
        while room > 0 and (part := stream.read(min(room, 1 << 20))):
            parts.append(part)
            room -= len(part)
    if room <= 0:
        raise OSError(errno.EFBIG, "it has more than 64 MiB", str(file))
    return b"".join(parts)
