"""The process that serves: a socket, TLS, and an end that lets answers under way come to theirs."""

import asyncio
import contextlib
import errno
import ipaddress
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from pixedge.errors import PixedgeError, UsageError
from pixedge.model import Model
from pixedge.serve.app import Service, create_app
from pixedge.serve.connection import Connection
from pixedge.serve.listener import Listener
from pixedge.serve.log import keep_log_short
from pixedge.serve.settings import Settings
from pixedge.terminal import log_to_stderr

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

# Connections at a time, each of which needs a file, and the files that are left for everything else.
_CONNECTIONS = 1024
_OTHER_FILES = 256

# Between the end of what is under way and the last resort, which is to drop the connections.
_LAST_RESORT = 5


def listen(host: str, port: int) -> socket.socket:
    """Take an address without answering there yet; port 0 takes any that is free.

    Raises UsageError for a host that has no address, PixedgeError where the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host} is no address of this machine ({error}); give one") from None
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise PixedgeError(f"port {port} of {host} is taken; give another --port, or 0 for any") from None
        raise PixedgeError(
            f"{host}, port {port}, cannot be listened at ({error.strerror}); give another --host or --port"
        ) from None
    return taken


def is_loopback(sock: socket.socket) -> bool:
    """Say whether only this machine can reach a socket."""
    return ipaddress.ip_address(str(sock.getsockname()[0]).partition("%")[0]).is_loopback


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Read a certificate with its chain, and its key, which may stand in the same file; raises UsageError."""

    def no_password() -> str:
        raise UsageError(f"the key in {key or certificate} has a password; give one without (openssl pkey)")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, no_password)
    except OSError as error:  # ssl.SSLError is one
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            reason = str(error.strerror)
        else:
            reason = "not a certificate in PEM with its key"
        files = f"{certificate}" + (f" and {key}" if key else "")
        raise UsageError(f"{files} cannot be used for TLS ({reason}); check --tls-cert, --tls-key") from None
    return context


def address(sock: socket.socket, *, tls: bool) -> str:
    """Give the URL at which a socket is reached from this machine."""
    host, port = sock.getsockname()[:2]
    unspecified = ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    name = "localhost" if unspecified else f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{name}:{port}"


def serve(
    model: Model,
    settings: Settings,
    sock: socket.socket,
    tls: ssl.SSLContext | None = None,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Serve until SIGTERM or Ctrl-C, drain, and return the exit code: 0 or 130.

    ``started`` is called once requests are taken.
    """
    server = make_server(model, settings, tls, started)
    log_to_stderr()
    keep_log_short()
    with _quiet_signals() as received:
        server.run([sock])
    return 130 if signal.SIGINT in received else 0


def make_server(
    model: Model,
    settings: Settings,
    tls: ssl.SSLContext | None = None,
    started: Callable[[], None] = lambda: None,
) -> "Server":
    """Prepare what ``serve`` runs; any thread may run it, and ``should_exit`` makes it drain."""
    app = create_app(model, settings)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.drain_seconds) + _LAST_RESORT,
    )
    return Server(config, app.state.service, settings.drain_seconds, tls, started)


class Server(uvicorn.Server):
    """uvicorn's server, which tells the service when to end."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        drain_seconds: float,
        tls: ssl.SSLContext | None,
        started: Callable[[], None],
    ) -> None:
        """Take what uvicorn runs; drain_seconds is for what is under way at the end."""
        super().__init__(config)
        self.service, self._drain_seconds, self._tls, self._on_start = service, drain_seconds, tls, started
        self.listeners: list[Listener] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup([])
        limit = max(_raise_file_limit() - _OTHER_FILES, 16)
        for sock in sockets or []:
            self.listeners.append(Listener(sock, self._connection, min(_CONNECTIONS, limit), self._tls))
            self.listeners[-1].start()
        self._on_start()

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is under way end by itself, or end it when its time is over."""
        self.service.drain()
        for listener in self.listeners:
            await listener.stop()
        last = asyncio.get_running_loop().call_later(self._drain_seconds, self.service.end)
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()
        if self.force_exit:  # a second Ctrl-C, at which uvicorn leaves everything as it is
            self.service.end()
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=_LAST_RESORT)
            await self.lifespan.shutdown()


def _raise_file_limit() -> int:
    """Let the process open as many files as it may and needs; give how many that are."""
    wanted = _CONNECTIONS + _OTHER_FILES
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


@contextlib.contextmanager
def _quiet_signals() -> Iterator[list[int]]:
    """Note the signals that end the server: uvicorn raises them again once it has ended by itself."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
