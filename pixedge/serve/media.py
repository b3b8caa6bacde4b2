"""Pictures at the server's door: the picture parts of a request's messages become decoded pictures.

    data: URL ───────────────────────────────────────────────┐
    http(s): URL ── host allowed? ── fetch, address checked ─┼── bytes ── read_fitted: limits ── [3, H, W]
    file: URL ───── media folder? ── opened below it ────────┘

Nothing else is opened. What an outsider is told about a refused address is the same sentence whether its host
is not on the list, has no such name, lies in the private network or does not answer.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pixedge.errors import ImageError, MessageError, UsageError
from pixedge.fetch import AddressError, fetch_image
from pixedge.image import FittedPicture, ImageLimits, TooManyPixelsError, read_fitted
from pixedge.messages import check_parts, decode_data_url, hint_for_base64, shown

_HOST = re.compile(r"(\*\.)?([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = (80, 443)

# A picture of 50 million pixels takes up to 1 GB while it is decoded and resized, in a process of its own.
SERVER_LIMITS = ImageLimits(max_bytes=20 * 1024 * 1024, max_pixels=50_000_000, max_images=64)


@dataclass(frozen=True)
class AllowedHost:
    """A host whose pictures may be fetched: its name, whether names below it are meant, its port.

    port None stands for 80 and 443.
    """

    name: str
    below: bool = False
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "AllowedHost":
        """Read "example.com", "*.example.com" or either with ":port"; raises UsageError otherwise."""
        try:
            ascii_text = text if text.isascii() else text.encode("idna").decode("ascii")
        except UnicodeError:
            ascii_text = ""
        found = _HOST.fullmatch(ascii_text)
        port = int(found[3]) if found and found[3] else None
        if found is None or port == 0 or (port or 0) > 65535 or (found[1] and "." not in found[2]):
            raise UsageError(
                f"--allow-host {text} is not a host; give a name such as images.example.com,"
                " *.example.com or example.com:8443, without http://"
            )
        return cls(found[2].strip("[]").lower(), bool(found[1]), port)

    def matches(self, host: str, port: int) -> bool:
        """Whether a host in lower case and its port are meant."""
        if port not in (_DEFAULT_PORTS if self.port is None else (self.port,)):
            return False
        return host.endswith("." + self.name) if self.below else host == self.name


@dataclass(frozen=True)
class MediaSettings:
    """Which pictures a request may bring.

    hosts: where http(s) URLs may lead; none by default. folder: below which file: URLs may lie; None for
    nowhere. limits: of one picture, and their number. max_total_pixels: of all pictures of a request.
    timeout: seconds for all downloads of a request.
    """

    hosts: tuple[AllowedHost, ...] = ()
    folder: Path | None = None
    limits: ImageLimits = field(default=SERVER_LIMITS)
    max_total_pixels: int = 200_000_000
    timeout: float = 20.0

    def __post_init__(self) -> None:
        """Check the folder and make its path absolute; raises UsageError."""
        if self.folder is None:
            return
        if os.open not in os.supports_dir_fd:
            raise UsageError("--media-dir does not work on this system; send pictures as data: URLs")
        folder = self.folder.expanduser()
        if not folder.is_dir():
            raise UsageError(f"--media-dir {self.folder} is not a folder; give the folder of the pictures")
        object.__setattr__(self, "folder", folder.resolve())

    def allows(self, host: str, port: int) -> bool:
        """Whether pictures may come from a host."""
        return any(each.matches(host, port) for each in self.hosts)


def read_pictures(
    messages: object,
    settings: MediaSettings,
    fit: tuple[int, int],
    hold: Callable[[int], None] = lambda _: None,
) -> object:
    """Replace every picture part of OpenAI messages by {"type": "image", "image": FittedPicture}, in order.

    messages as they came from JSON; they are not changed, and what is not a picture part is handed on as it
    is for `pixedge.messages.read_messages` to check, which also knows to whom pictures belong. The pictures
    are counted before the first is opened. Blocks while it fetches and decodes. fit: the longest side in
    pixels, and the patch's, that the pictures are brought to. hold is told the bytes that
    the decoded pictures take so far, and may refuse them by raising.

    Raises ImageError or MessageError, which names message and part by their indices from 0.
    """
    if not isinstance(messages, list):
        return messages
    parts = [part for message in messages for part in _parts(message) if _is_picture(part)]
    settings.limits.check_count(len(parts))
    for index, message in enumerate(messages):
        check_parts(f"message {index}", _parts(message))
    door = _Door(settings, fit, hold)
    return [_opened(f"message {index}", message, door) for index, message in enumerate(messages)]


def has_pictures(messages: object) -> bool:
    """Whether messages as they came from JSON have a picture part."""
    return isinstance(messages, list) and any(
        _is_picture(part) for message in messages for part in _parts(message)
    )


def _parts(message: object) -> Sequence[object]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list) else ()


def _is_picture(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image_url"


def _opened(where: str, message: Any, door: "_Door") -> object:
    parts: list[object] = []
    for at, part in enumerate(_parts(message)):
        place = f"{where}, part {at}"
        if isinstance(part, Mapping) and part.get("type") == "image":
            raise MessageError(f"{place} has the type 'image'; use 'image_url' with a data: URL")
        parts.append({"type": "image", "image": door.open(place, part)} if _is_picture(part) else part)
    return {**message, "content": parts} if parts else message


class _Door:
    """Opens the pictures of one request under its limits taken together."""

    def __init__(self, settings: MediaSettings, fit: tuple[int, int], hold: Callable[[int], None]) -> None:
        self._settings, self._fit, self._hold = settings, fit, hold
        self._bytes_held = 0
        self._pixels = settings.max_total_pixels
        self._deadline: float | None = None

    def open(self, where: str, part: Any) -> FittedPicture:
        """Decode the picture of one part."""
        url = part.get("image_url")
        if isinstance(url, Mapping):
            url = url.get("url")
        if not isinstance(url, str):
            raise MessageError(f"{where} has an image_url of type {type(url).__name__}; give a data: URL")
        limits = self._settings.limits
        data = self._bytes(where, url.strip())
        try:
            picture = read_fitted(
                data,
                f"the picture of {where}",
                replace(limits, max_pixels=min(limits.max_pixels, self._pixels)),
                *self._fit,
            )
        except TooManyPixelsError as error:
            if self._pixels >= limits.max_pixels:
                raise
            raise ImageError(
                f"the pictures up to {where} have more than {self._settings.max_total_pixels:,} pixels"
                " together; give fewer or smaller pictures"
            ) from error
        self._pixels -= picture.width * picture.height
        self._bytes_held += picture.pixels.nbytes
        self._hold(self._bytes_held)
        return picture

    def _bytes(self, where: str, url: str) -> bytes:
        scheme = url[:10].partition(":")[0].lower()
        if scheme == "data":
            return decode_data_url(where, url, self._settings.limits.max_bytes)
        if scheme in ("http", "https"):
            return self._fetch(where, url)
        if scheme == "file" and self._settings.folder is not None:
            return _file_bytes(where, url, self._settings.folder, self._settings.limits)
        raise ImageError(
            f"{where} points to {shown(url)}, which is not allowed; send a data: URL{hint_for_base64(url)}"
        )

    def _fetch(self, where: str, url: str) -> bytes:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._settings.timeout
        refused = (
            f"{where} points to {shown(url)}, which is not allowed or does not answer in time;"
            " send a data: URL"
        )
        if not self._settings.hosts:
            raise ImageError(refused)
        try:
            return fetch_image(
                url,
                self._settings.limits,
                timeout=max(self._deadline - now, 0.0),
                allowed=self._settings.allows,
            )
        except AddressError:
            raise ImageError(refused) from None
        except ImageError as error:
            raise ImageError(f"{where}: {str(error).replace(url, shown(url))}") from None


def _file_bytes(where: str, url: str, folder: Path, limits: ImageLimits) -> bytes:
    """Read a file below the folder; no link is followed, so none can lead out of it."""
    refused = ImageError(f"{where} points to {shown(url)}, which is no file below the server's media folder")
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path, errors="strict"))
    except ValueError:
        raise refused from None
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or "\0" in str(path):
        raise refused
    if path.is_absolute():
        if not path.is_relative_to(folder):
            raise refused
        path = path.relative_to(folder)
    if not path.parts or ".." in path.parts:
        raise refused
    with contextlib.ExitStack() as stack:
        opened = _open(folder, None, os.O_DIRECTORY, stack, refused)
        for name in path.parts[:-1]:
            opened = _open(name, opened, os.O_DIRECTORY | os.O_NOFOLLOW, stack, refused)
        # O_NONBLOCK: a pipe without a writer would wait for ever
        opened = _open(path.name, opened, os.O_NOFOLLOW | os.O_NONBLOCK, stack, refused)
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise refused
        if status.st_size > limits.max_bytes:
            raise ImageError(
                f"the picture of {where} has {status.st_size:,} bytes and the limit is {limits.max_bytes:,};"
                " make the picture smaller"
            )
        with os.fdopen(os.dup(opened), "rb") as file:
            return file.read(limits.max_bytes + 1)


def _open(
    name: str | Path, folder: int | None, flags: int, stack: contextlib.ExitStack, refused: ImageError
) -> int:
    try:
        opened = os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=folder)
    except (OSError, ValueError):
        raise refused from None
    stack.callback(os.close, opened)
    return opened
