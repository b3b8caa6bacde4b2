"""Names of files on a command line: patterns, and what lies there where it is no file."""

import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence

from pixedge.errors import ImageError

_MAGIC = re.compile(r"[*?\[]")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def irregular(path: str) -> str | None:
    """Say what lies at a path where it is no file that can be read twice; None for a file, or for nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "a link that leads nowhere" if os.path.lexists(path) else None
    return next((name for test, name in _KINDS if test(mode)), None)


def expand_names(
    names: Sequence[str], leave_out: Callable[[str, str], None] = lambda path, what: None
) -> list[str]:
    """Replace each pattern (``*``, ``?``, ``[...]``, ``**``) by the files it matches, in natural order.

    What exists is taken literally whatever its name holds, folders within a pattern too. "-" (standard input)
    and http(s) addresses stay as they are, and so does a missing file, which reading it reports. Natural
    order puts page2 before page10. leave_out(path, what) is told of matches that are no files. Raises
    ImageError for a pattern that matches no file.
    """
    expanded: list[str] = []
    for name in names:
        if not is_pattern(name):
            expanded.append(name)
            continue
        matches = sorted(match_pattern(name), key=natural_key)
        kinds = {path: irregular(path) for path in matches}
        files = [path for path in matches if kinds[path] is None]
        for path, what in kinds.items():
            if what is not None:
                leave_out(path, what)
        if not files:
            only = next((f", only {path}, {what}" for path, what in kinds.items()), "")
            raise ImageError(f"{name} matches no file{only}; check the folder and the pattern")
        expanded += files
    return expanded


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern: it has the signs of one, it does not exist, and it is no address."""
    is_url = re.match(r"https?://", name, re.IGNORECASE)
    return bool(_MAGIC.search(name)) and not is_url and not os.path.lexists(name)


def match_pattern(pattern: str) -> Iterator[str]:
    """Yield the paths that a pattern matches, in any order."""
    drive, path = os.path.splitdrive(pattern)
    separators = "\\\\/" if os.name == "nt" else "/"
    parts = re.split(f"[{separators}]+", path)
    if len(parts) > 1 and not parts[0]:  # an absolute path
        return _match(drive + os.sep, parts[1:])
    return _match(drive, parts)


def natural_key(path: str) -> tuple[list[str | int], str]:
    """Digits compare as numbers; they sit at the odd places, so numbers never meet words."""
    parts = re.split(r"(\d+)", path.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path


def _match(base: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield what is below ``base``, taking each part literally where that exists."""
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    literal = os.path.join(base, part)
    if os.path.lexists(literal):
        yield from _match(literal, rest)
    elif part == "**" and rest:
        yield from _match(base, rest)
        for folder in glob.iglob("**" + os.sep, root_dir=base or None, recursive=True):
            yield from _match(os.path.join(base, folder.rstrip(os.sep)), rest)
    elif _MAGIC.search(part):
        for name in glob.iglob(part, root_dir=base or None, recursive=True):
            yield from _match(os.path.join(base, name), rest)
