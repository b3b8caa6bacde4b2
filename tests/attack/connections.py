"""Connections that say nothing, or a byte now and then."""

import contextlib
import resource
import socket
import threading
import time

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 60000\r\n\r\n"
)


def open_many_files(count: int) -> None:
    """Let this process open as many sockets as an attack needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


class Slow:
    """A number of connections, each of which begins with ``said`` and goes on with a byte every ``seconds``.

    Those that the server closes are opened again. ``seconds`` None says nothing more, and opens none again.
    """

    def __init__(self, port: int, count: int, said: bytes = b"", seconds: float | None = None) -> None:
        self._port, self._said, self._seconds = port, said, seconds
        self._sockets = [self._open() for _ in range(count)]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        if seconds is not None:
            self._thread.start()

    def _open(self) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        with contextlib.suppress(OSError):
            line.sendall(self._said)
        line.setblocking(False)
        return line

    def _go_on(self) -> None:
        pause = self._seconds / max(1, len(self._sockets))
        while not self._ending.is_set():
            for at, line in enumerate(self._sockets):
                if self._ending.wait(pause):
                    return
                try:
                    if line.send(b"x") and line.recv(1 << 16) == b"":
                        raise ConnectionResetError
                except BlockingIOError:
                    pass
                except OSError:
                    line.close()
                    with contextlib.suppress(OSError):
                        self._sockets[at] = self._open()

    def __enter__(self) -> "Slow":
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        if self._seconds is not None:
            self._thread.join()
        for line in self._sockets:
            line.close()


def worst_wait(ask, seconds: float) -> float:
    """Ask again and again, each time anew; give the longest time that an answer took."""
    worst, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        ask()
        worst = max(worst, time.monotonic() - start)
    return worst
