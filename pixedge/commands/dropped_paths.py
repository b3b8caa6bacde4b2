r"""Paths to pictures within a message, typed by a person or written by a terminal for a dropped file.

A terminal writes a dropped file as 'it is.png', "it is.png", it\ is.png or file:///it%20is.png.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".heic", ".heif", ".avif", ".pdf"}
)
_PAGES = re.compile(r"\.pdf\[[\d,\s-]+\]$", re.IGNORECASE)
_WORD = re.compile(r"(?:\\.|[^\s\\])+" if os.name != "nt" else r"\S+")


@dataclass(frozen=True)
class Message:
    """A message without the paths in it, and the paths, in their order."""

    text: str
    paths: tuple[str, ...]


def read_message(text: str) -> Message:
    r"""Take the paths of existing pictures and documents out of a message.

    A path at the beginning, and one at the end that was dropped there (in quotes, absolute or escaped), is
    left out; one within a sentence is replaced by the name of its file, so that the sentence stays one.
    """
    parts: list[str] = []
    paths: list[str] = []
    end = 0
    for found in _paths(text):
        before = text[end : found.start]
        parts.append(before)
        paths.append(found.path)
        ahead, behind = "".join(parts).strip(), text[found.end :].strip()
        dropped = found.dropped or not ahead
        if not (dropped and (not ahead or not behind)):
            parts.append(Path(found.path).name)
        end = found.end
    parts.append(text[end:])
    # Only what a path left behind is tidied: a message's own spaces and lines stay.
    return Message("".join(parts).strip() if paths else text, tuple(paths))


@dataclass(frozen=True)
class _Found:
    start: int
    end: int
    path: str
    dropped: bool


def _paths(text: str) -> Iterator[_Found]:
    """Yield the places of paths to pictures."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _quoted(text, at) or _bare(text, at)
        if found is not None:
            yield found
            at = found.end
        else:
            word = _WORD.match(text, at)
            at = word.end() if word else at + 1


def _quoted(text: str, at: int) -> _Found | None:
    """Read a path in quotes that begins here."""
    if text[at] not in "'\"":
        return None
    end = text.find(text[at], at + 1)
    if end < 0 or not (path := _picture(text[at + 1 : end])):
        return None
    return _Found(at, end + 1, path, True)


def _bare(text: str, at: int) -> _Found | None:
    """Read a path without quotes that begins here, or behind a bracket; punctuation may follow it."""
    word = _WORD.match(text, at)
    if word is None:
        return None
    start = at + (len(word[0]) - len(word[0].lstrip("(")))
    whole = text[start : word.end()]
    for written in dict.fromkeys((whole, whole.rstrip(".,;:!?"), whole.rstrip(".,;:!?)"))):
        plain = written if os.name == "nt" else re.sub(r"\\(.)", r"\1", written)
        if written and (path := _picture(plain)):
            dropped = plain != written or os.path.isabs(plain) or plain.startswith("file://")
            return _Found(start, start + len(written), path, dropped)
    return None


def _picture(written: str) -> str | None:
    """Give the path that was written, if a picture or a document lies there."""
    if written.lower().startswith("file://"):
        try:
            url = urlsplit(written)
        except ValueError:
            return None
        if url.netloc not in ("", "localhost"):
            return None
        written = unquote(url.path)
        if os.name == "nt":
            written = written.lstrip("/")
    path = os.path.expanduser(written)
    pages = _PAGES.search(path)
    file = path[: pages.start() + len(".pdf")] if pages else path
    try:
        there = Path(file).suffix.lower() in _SUFFIXES and os.path.isfile(file)
    except ValueError:  # a null character
        return None
    return path if there else None
