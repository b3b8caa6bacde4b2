"""A connection to a client that is slow on purpose, or that is no longer there."""

import asyncio
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from pixedge.serve.listener import Listener


class Connection(H11Protocol):
    """uvicorn's protocol with two deadlines that it lacks, and a listener that is told who waits for whom.

    A request's head must be complete ``head_seconds`` after its first byte, or after the connection was made;
    and bytes that were sent must be taken within ``send_seconds``.
    """

    head_seconds = 15.0
    send_seconds = 60.0
    listener: "Listener"
    _head: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._forget_head()
        self.resume_writing()
        self.listener.gone(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and begin or end to wait for the rest of a head."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            if self._head is None:
                self._expect_head()
        else:
            self._forget_head()
        self._tell_listener()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._tell_listener()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; behind the beginning of an answer nothing can be said any more."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
            if self.cycle is not None and not self.cycle.response_complete:
                # what the application still answers to the request's head has no place any more
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Note that the client takes nothing for the moment."""
        super().pause_writing()
        self._sending = self.loop.call_later(self.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it takes bytes again."""
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _tell_listener(self) -> None:
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self.listener.waits(self)
        else:
            self.listener.works(self)

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
