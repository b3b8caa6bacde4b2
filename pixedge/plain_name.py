"""Names of files that stay in their folder, whatever a stranger wrote into an index."""

import os
from pathlib import Path

_LONGEST = 255  # bytes, of every common file system
_FORBIDDEN = frozenset("/\\:\0")  # : names a drive or a stream on Windows


def is_plain_name(name: object) -> bool:
    """Tell whether a name is one file's: no folder, no drive, not . or .., and not too long."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not _FORBIDDEN & set(name)
        and len(name.encode("utf-8", errors="surrogatepass")) <= _LONGEST
    )


def leads_out(file: Path) -> bool:
    """Tell whether a file is a link, or lies behind one, that leads out of its folder."""
    return os.path.dirname(os.path.realpath(file)) != os.path.realpath(file.parent)
