"""Names of files that stay in their folder, whatever a stranger wrote into an index."""

import os
from pathlib import Path

_LONGEST = 255  # bytes, of every common file system
_FORBIDDEN = frozenset("/\\:\0")  # : names a drive or a stream on Windows


def is_plain_name(name: object) -> bool:
    """Tell whether a name is one file's: no folder, no drive, not . or .., and not too long."""
    if not isinstance(name, str) or name in ("", ".", "..") or _FORBIDDEN & set(name):
        return False
    try:
        return len(name.encode("utf-8")) <= _LONGEST
    except UnicodeEncodeError:  # half a surrogate, which JSON can write and no file is called by
        return False


def leads_out(file: Path) -> bool:
    """Tell whether a file is a link, or lies behind one, that leads out of its folder."""
    return os.path.dirname(os.path.realpath(file)) != os.path.realpath(file.parent)
