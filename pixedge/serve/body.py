"""The body of a request, read within caps on its bytes and on its time."""

import asyncio
import contextlib

from starlette.requests import Request

from pixedge.serve.errors import Refusal
from pixedge.serve.room import Held
from pixedge.serve.settings import Settings

# A body without pictures; it is taken however much waits.
SMALL_BODY = 1 << 16


async def read_body(request: Request, settings: Settings, held: Held) -> bytearray:
    """Read a JSON body; its bytes are ``held``.

    Raises Refusal for another content type, too many bytes, or bytes that come too slowly, Gone when the
    client leaves.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        message = f"the content type is {kind[:80]!r}; send JSON as application/json"
        raise Refusal(415, message, code="unsupported_content_type")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > settings.max_body:
        raise _too_large(settings, f"{int(stated):,} bytes")
    loop = asyncio.get_running_loop()
    end = loop.time() + settings.body_seconds
    body = bytearray()
    try:
        async with asyncio.timeout_at(end) as deadline:
            held.come(lambda: loop.call_soon_threadsafe(_expire, deadline))
            while True:
                deadline.reschedule(min(end, loop.time() + settings.pause_seconds))
                event = await request.receive()
                if event["type"] == "http.disconnect":
                    raise Gone
                size = len(body) + len(event.get("body", b""))
                if size > settings.max_body:
                    raise _too_large(settings, "more bytes")
                held.set(size, always=size <= SMALL_BODY)
                if held.closed:
                    raise TimeoutError
                body += event.get("body", b"")
                if not event.get("more_body", False):
                    return body
    except TimeoutError:
        raise _too_slow(settings, gave_way=held.closed) from None
    finally:
        held.came()


class Gone(Exception):
    """The client went away; nobody is there to be told anything."""


def _expire(deadline: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # it is over already
        deadline.reschedule(0)


def _too_slow(settings: Settings, *, gave_way: bool) -> Refusal:
    if gave_way:
        message = "the body came slowly and other requests needed its memory; send it again, faster"
    else:
        message = (
            f"the body did not come within {settings.body_seconds:g} s, or paused for "
            f"{settings.pause_seconds:g} s; send it faster"
        )
    return Refusal(408, message, code="body_too_slow", headers={"connection": "close"})


def _too_large(settings: Settings, size: str) -> Refusal:
    return Refusal(
        413,
        f"the body has {size} and the limit is {settings.max_body:,}; send fewer or smaller pictures",
        code="body_too_large",
        headers={"connection": "close"},
    )
