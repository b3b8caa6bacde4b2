"""Takes connections up to a limit, and drops those that wait longest for a request when it is reached.

asyncio's own server takes whatever comes: at the system's limit of open files it stops for a second, and
writes a traceback for every connection that waits. Nor does it count those that have not finished their TLS
handshake.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable

from pixedge.serve.connection import Connection

# Connections that the system keeps until they are taken.
_BACKLOG = 1024

# After an accept that failed, for want of files or memory.
_PAUSE = 0.05

_LOG = logging.getLogger("pixedge.serve")


class Listener:
    """Accepts from one socket; lives in the event loop."""

    def __init__(
        self, sock: socket.socket, make: Callable[[], Connection], limit: int, tls: ssl.SSLContext | None
    ) -> None:
        """Prepare to take up to ``limit`` connections, each served by what ``make`` gives."""
        self._socket, self._make, self._limit, self._tls = sock, make, limit, tls
        self._senders: dict[Connection, object] = {}  # all that are open
        self._waiting: dict[object, dict[Connection, None]] = {}  # by sender, the longest wait first
        self._handshakes: dict[Connection, asyncio.Task[None]] = {}
        self._accepting: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._senders)

    def start(self) -> None:
        """Begin to accept."""
        self._socket.setblocking(False)
        self._socket.listen(_BACKLOG)
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        """Accept no more, and end handshakes; connections that are made stay."""
        for task in [self._accepting, *self._handshakes.values()]:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    # Called by connections

    def waits(self, connection: Connection) -> None:
        """Note that a connection waits for its client: for a handshake, a head or a body."""
        if (sender := self._senders.get(connection)) is not None:
            self._waiting.setdefault(sender, {}).setdefault(connection)

    def works(self, connection: Connection) -> None:
        """Note that a connection has a whole request, and is not dropped before its answer."""
        sender = self._senders.get(connection)
        if (waiting := self._waiting.get(sender)) is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[sender]

    def gone(self, connection: Connection) -> None:
        """Forget a connection."""
        self.works(connection)
        self._senders.pop(connection, None)

    # Inside

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(self._socket)
            except OSError as error:
                _LOG.warning("a connection could not be taken (%s)", error.strerror)
                self._drop_one()
                await asyncio.sleep(_PAUSE)
                continue
            if self.count >= self._limit and not self._drop_one():
                client.close()
            else:
                connection = self._make()
                connection.listener = self
                self._senders[connection] = _sender(address[0])
                self.waits(connection)
                self._handshakes[connection] = asyncio.create_task(self._begin(client, connection))
            await asyncio.sleep(0)  # or nobody else would have a turn while more are waiting

    async def _begin(self, client: socket.socket, connection: Connection) -> None:
        """Shake hands, if it is TLS, and hand over to the connection."""
        seconds = connection.head_seconds if self._tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, client, ssl=self._tls, ssl_handshake_timeout=seconds
            )
        except (OSError, asyncio.CancelledError):  # what strangers do to a handshake is no news
            client.close()
            self.gone(connection)
        finally:
            self._handshakes.pop(connection, None)

    def _drop_one(self) -> bool:
        """Drop the longest wait of the sender that has most of them; False where nobody waits."""
        if not self._waiting:
            return False
        most = max(self._waiting.values(), key=len)
        connection = next(iter(most))
        self.gone(connection)
        if (handshake := self._handshakes.get(connection)) is not None:
            handshake.cancel()
        else:
            connection.transport.abort()
        return True


def _sender(host: str) -> object:
    """Give what stands for one sender: an IPv4 address, or the network of an IPv6 address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or int(address) >> 64
    return address
