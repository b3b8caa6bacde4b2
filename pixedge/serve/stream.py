"""Answers as server-sent events, and the watch for clients that go away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # or a proxy would wait for the whole answer
    "x-content-type-options": "nosniff",
}


class EventStream(Response):
    """Sends events as they come, until they end."""

    def __init__(self, events: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
        """Take the events; ``leave`` is called when the client goes away, and at the end in any case."""
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._leave = events, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all."""
        async with watched(receive, self._leave):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextlib.asynccontextmanager
async def watched(receive: Receive, leave: Callable[[], None], *, at_end: bool = True) -> AsyncIterator[None]:
    """Call ``leave`` as soon as the client goes away, and ``at_end`` of the block in any case."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # bytes behind a complete body
        leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        if at_end:
            leave()
