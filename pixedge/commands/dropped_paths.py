r"""Paths to pictures within a message, typed by a person or written by a terminal for a dropped file.

A terminal writes a dropped file as 'it'\''s.png', "it is.png", it\ is.png or file:///it%20is.png.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pixedge.errors import ImageError
from pixedge.path_patterns import is_pattern, match_pattern, natural_key
from pixedge.picture_formats import ENDINGS

_SUFFIXES = ENDINGS | {".pdf"}
# What people drop and pixedge does not read: an error says so, and the name is not sent as text.
_UNREADABLE = frozenset(
    {".svg", ".svgz", ".ico", ".psd", ".xcf", ".eps", ".ai", ".jp2", ".j2k", ".jxl", ".tga", ".dds", ".exr"}
    | {".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".djvu", ".wmf", ".emf"}
    | {".mp4", ".mov", ".avi", ".mkv", ".webm"}
)
_PAGES = r"(?:\[[\d,\s-]+\])?"
_ENDING = re.compile(r"[^/]\.([A-Za-z0-9]+)" + _PAGES + r"\Z", re.DOTALL)
_SPACED = re.compile(r"\.([A-Za-z0-9]+)" + _PAGES + r"(?=$|[\s.,;:!?)])")
_URL = re.compile(r"https?://", re.IGNORECASE)
_FILE_URL = re.compile(r"file:(?://([^/]*))?(/.*)", re.IGNORECASE | re.DOTALL)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\]")
_POSIX = os.name != "nt"

# A word as a shell reads it, and as prose has it, where an apostrophe quotes nothing.
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
if _POSIX:
    _QUOTED = r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^\s'"\\]+)"""
else:
    _QUOTED = r"""'([^']*)'|"([^"]*)"|()(?!)|([^\s'"]+)"""
_PART = re.compile(_QUOTED, re.DOTALL)
_SHELL_WORD = re.compile(f"(?:{_QUOTED})+", re.DOTALL)
_WORD = re.compile(
    r"""(?:'[^']*'|"(?:\\["\\$`]|[^"])*"|\\.|[^\s'"\\])+""" if _POSIX else r"""(?:'[^']*'|"[^"]*"|[^\s'"])+"""
)
_QUOTED_PARTS = re.compile(r"""'([^']*)'|"((?:\\["\\$`]|[^"])*)"|\\(.)|([^'"\\]+)""" if _POSIX
                           else r"""'([^']*)'|"([^"]*)"|(?!)()|([^'"]+)""")  # fmt: skip
_WORD = re.compile(r"(?:\\.|[^\s\\])+" if _POSIX else r"\S+")

# A picture's name with spaces in it is looked for in so many characters, in messages that a person types.
_TYPED = 4096
_SPACES_WITHIN = 256


@dataclass(frozen=True)
class Message:
    """A message without the paths in it, and the paths, in their order.

    doubtful: names within the sentence that are spelt like pictures' and lead to none; they stay text.
    """

    text: str
    paths: tuple[str, ...]
    doubtful: tuple[str, ...] = ()


def read_message(text: str) -> Message:
    r"""Take the paths of pictures and documents out of a message.

    A path at the beginning, and one at the end that was dropped there (in quotes, absolute or escaped), is
    left out; one within a sentence is replaced by the name of its file, so that the sentence stays one.
    Raises ImageError for what is spelt as a path, or stands where one belongs, and leads to no picture.
    """
    parts: list[str] = []
    paths: list[str] = []
    doubtful: list[str] = []
    end = 0
    for found in _paths(text):
        before = text[end : found.start]
        ahead, behind = ("".join(parts) + before).strip(), text[found.end :].strip()
        if not found.paths:
            if found.explicit or not ahead:
                raise ImageError(_missing(found))
            doubtful.append(found.name)
            continue
        parts.append(before)
        paths += found.paths
        dropped = found.explicit or not ahead
        if not (dropped and (not ahead or not behind)):
            parts.append(", ".join(Path(path).name for path in found.paths))
        end = found.end
    parts.append(text[end:])
    # Only what a path left behind is tidied: a message's own spaces and lines stay.
    return Message("".join(parts).strip() if paths else text, tuple(paths), tuple(doubtful))


@dataclass(frozen=True)
class _Found:
    """A path's place in the text; explicit: it can be nothing but a path. No paths: nothing lies there."""

    start: int
    end: int
    name: str
    explicit: bool
    paths: tuple[str, ...]


def _missing(found: _Found) -> str:
    name, ending = found.name, _ending(found.name)
    if os.path.isdir(name):
        return f"{name} is a folder; name its pictures, as {name.rstrip(os.sep)}/*.jpg"
    if ending in _UNREADABLE:
        return f"{name} is not a picture that pixedge can read ({ending}); save it as PNG or JPEG"
    if is_pattern(name) and ending != ".pdf":
        return f"{name} matches no file; check the folder and the pattern"
    return f"{name} does not exist; check the path"


def _paths(text: str) -> Iterator[_Found]:
    """Yield the places of paths to pictures, and of what is spelt like one."""
    at, leading = 0, True
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _at(text, at, leading)
        if found is not None:
            yield found
            at = found.end
            leading &= bool(found.paths)
        else:
            word = _WORD.match(text, at)
            at = word.end() if word else at + 1
            leading = False


def _at(text: str, at: int, leading: bool) -> _Found | None:
    """Read a path that begins here; one that leads somewhere comes before one that does not."""
    lost: _Found | None = None
    for start, end, name, quoted in _spellings(text, at):
        explicit = quoted or _is_explicit(name)
        paths = _resolve(name, explicit, leading)
        if paths:
            return _Found(start, end, name, explicit, paths)
        if lost is None and _is_lost(name, explicit, leading):
            lost = _Found(start, end, name, explicit, ())
    return lost


def _spellings(text: str, at: int) -> Iterator[tuple[int, int, str, bool]]:
    """Yield start, end, the name meant, and whether quotes or escapes are used, of what begins here."""
    word = _SHELL_WORD.match(text, at)
    if word is not None and not _WINDOWS_PATH.match(word[0]):
        parts = list(_PART.finditer(text, at, word.end()))
        name = "".join(map(_meant, parts))
        # in prose an apostrophe within a word begins nothing: "What's in Bob's.png"
        if name != word[0] and (text[at] in "'\"" or " " not in name or "\\ " in word[0]):
            yield at, word.end(), name, True
            if text[at] in "'\"":
                yield at, parts[0].end(), _meant(parts[0]), True
    word = _WORD.match(text, at)
    if word is None:
        return
    start = at + (len(word[0]) - len(word[0].lstrip("(")))
    whole = text[start : word.end()]
    for written in dict.fromkeys((whole, whole.rstrip(".,;:!?"), whole.rstrip(".,;:!?)"))):
        plain = _ESCAPE.sub(r"\1", written) if _POSIX and not _WINDOWS_PATH.match(written) else written
        if plain:
            yield start, start + len(written), plain, plain != written
    if len(text) <= _TYPED:
        for ending in _SPACED.finditer(text, word.end(), start + _SPACES_WITHIN):
            name = text[start : ending.end()]
            if "\n" not in name and os.path.isfile(os.path.expanduser(name)):
                yield start, ending.end(), name, False


def _meant(part: re.Match[str]) -> str:
    """Give what a part of a shell's word stands for: in quotes, escaped, or as it is."""
    single, double, escaped, bare = part.groups()
    if double is not None and _POSIX and not _WINDOWS_PATH.match(double):
        return re.sub(r'\\(["\\$`])', r"\1", double)
    return str(next(each for each in (single, double, escaped, bare) if each is not None))


def _is_explicit(name: str) -> bool:
    """Whether a name is spelt so that it can be nothing but a path or an address."""
    return bool(
        os.path.isabs(name)
        or name.startswith(("~", "./", "../", ".\\", "..\\"))
        or _WINDOWS_PATH.match(name)
        or _URL.match(name)
        or _FILE_URL.match(name)
        or (os.path.dirname(name) and _ending(name))
    )


def _ending(name: str) -> str:
    """Give the ending of a picture's name, read or not, in lower case; "" where it has none."""
    if _URL.match(name):
        name = re.split("[?#]", name)[0]
    found = _ENDING.search(name)
    ending = f".{found[1].lower()}" if found else ""
    return ending if ending in _SUFFIXES or ending in _UNREADABLE else ""


def _is_lost(name: str, explicit: bool, leading: bool) -> bool:
    """Whether a name that leads to no picture is spelt like one's."""
    if _ending(name):
        return True
    # /tmp alone may be what is asked about
    deep = os.path.dirname(name.rstrip(os.sep)) not in ("", os.sep)
    return explicit and leading and deep and os.path.isdir(os.path.expanduser(name))


def _resolve(name: str, explicit: bool, leading: bool) -> tuple[str, ...]:
    """Give the paths that a name leads to: a picture's by its ending, any file's where a path is due."""
    if _URL.match(name):
        return (name,) if _ending(name) in _SUFFIXES else ()
    path = os.path.expanduser(name)
    address = _FILE_URL.fullmatch(name)
    if address is not None:
        if (address[1] or "localhost").lower() != "localhost":
            return ()
        path = unquote(address[2])
        path = path if _POSIX else path.lstrip("/")
    ending = _ending(path)
    due = address is not None or (explicit and leading)
    try:
        if os.path.lexists(path):
            is_file = not os.path.isdir(path)
            return (path,) if ending in _SUFFIXES or (is_file and due) else ()
        pages = re.search(_PAGES + "$", path)
        if ending == ".pdf" and pages and pages[0] and os.path.lexists(path[: pages.start()]):
            return (path,)
        if ending in _SUFFIXES and (explicit or leading) and is_pattern(path):
            matches = [match for match in match_pattern(path) if os.path.isfile(match)]
            return tuple(sorted(matches, key=natural_key))
    except ValueError:  # a null character
        pass
    return ()
