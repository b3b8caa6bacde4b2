"""The body of a request, read within caps on its bytes and on its time."""

import asyncio
import time

from starlette.requests import Request

from pixedge.serve.errors import Refusal
from pixedge.serve.settings import Settings

# A body without pictures; it is taken however much waits.
_SMALL = 1 << 16


class Room:
    """Bytes that all requests together may hold while they wait; used in the event loop only."""

    def __init__(self, limit: int) -> None:
        """Begin with nothing held."""
        self.limit, self.held = limit, 0

    def take(self, count: int, *, always: bool = False) -> None:
        """Take so many bytes; raises Refusal where others hold too many, but for what may ``always`` be had.

        One alone may take what it needs.
        """
        if self.held and self.held + count > self.limit and not always:
            raise busy("other requests hold the memory for waiting pictures", 2)
        self.held += count

    def give(self, count: int) -> None:
        """Give bytes back."""
        assert 0 <= count <= self.held
        self.held -= count


def busy(reason: str, seconds: int) -> Refusal:
    """Give the refusal of a server that has too much to do, with the time after which to ask again."""
    return Refusal(
        429,
        f"{reason}; ask again in {seconds} s",
        code="queue_full",
        headers={"retry-after": str(seconds)},
    )


async def read_body(request: Request, settings: Settings, room: Room) -> bytes:
    """Read a JSON body; its bytes are taken from ``room``, and the caller gives len(body) back.

    Raises Refusal for another content type, too many bytes, or bytes that come too slowly.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        message = f"the content type is {kind[:80]!r}; send JSON as application/json"
        raise Refusal(415, message, code="unsupported_content_type")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > settings.max_body:
        raise _too_large(settings, f"{int(stated):,} bytes")
    end = time.monotonic() + settings.body_seconds
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            left = end - time.monotonic()
            async with asyncio.timeout(max(0.0, min(left, settings.pause_seconds))):
                event = await request.receive()
            if event["type"] == "http.disconnect":
                raise Gone
            part = event.get("body", b"")
            if size + len(part) > settings.max_body:
                raise _too_large(settings, "more bytes")
            room.take(len(part), always=size + len(part) <= _SMALL)
            size += len(part)
            parts.append(part)
            if not event.get("more_body", False):
                return b"".join(parts)
    except BaseException as error:
        room.give(size)
        if isinstance(error, TimeoutError):
            raise Refusal(
                408,
                f"the body did not come within {settings.body_seconds:g} s, or paused for "
                f"{settings.pause_seconds:g} s; send it faster",
                code="body_too_slow",
                headers={"connection": "close"},
            ) from None
        raise


class Gone(Exception):
    """The client went away; nobody is there to be told anything."""


def _too_large(settings: Settings, size: str) -> Refusal:
    return Refusal(
        413,
        f"the body has {size} and the limit is {settings.max_body:,}; send fewer or smaller pictures",
        code="body_too_large",
        headers={"connection": "close"},
    )
