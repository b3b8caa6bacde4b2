"""Bytes that all requests together may hold while they wait, and the part of each one."""

import threading
import time
from collections.abc import Callable

from pixedge.serve.errors import Refusal

# A body that has been coming for so many seconds gives way when another one needs the room.
_PATIENCE = 1.0


def busy(reason: str, seconds: int) -> Refusal:
    """Give the refusal of a server that has too much to do, with the time after which to ask again."""
    return Refusal(
        429,
        f"{reason}; ask again in {seconds} s",
        code="queue_full",
        headers={"retry-after": str(seconds)},
    )


class Room:
    """A number of bytes, shared out to requests; any thread may use it."""

    def __init__(self, limit: int) -> None:
        """Begin with nothing held."""
        self.limit, self.held = limit, 0
        self._lock = threading.Lock()
        self._coming: dict[Held, None] = {}  # whose body is still coming, the oldest first

    def _set(self, part: "Held", count: int, always: bool) -> None:
        with self._lock:
            if part.closed:
                return
            if count > part.count and not always:
                self._make_room(part, count)
            self.held += count - part.count
            part.count = count

    def _make_room(self, part: "Held", count: int) -> None:
        """Have slow bodies give way; raises Refusal if that is not enough. One part alone may be any size."""
        now = time.monotonic()
        for other in list(self._coming):
            if self.held - part.count + count <= self.limit or now - other.began < _PATIENCE:
                break
            if other is not part:
                self._close(other)
                other.give_way()
        others = self.held - part.count
        if others and others + count > self.limit:
            raise busy("other requests hold the memory for requests that wait", 2)

    def _close(self, part: "Held") -> None:
        self._coming.pop(part, None)
        self.held -= part.count
        part.count, part.closed = 0, True


class Held:
    """What one request holds of a room, from the first byte of its body to the end of its answer."""

    def __init__(self, room: Room) -> None:
        """Begin with nothing."""
        self.count, self.closed = 0, False
        self.large = False  # whether others need not wait for it
        self.began = time.monotonic()
        self.give_way: Callable[[], object] = lambda: None
        self._room = room

    def set(self, count: int, *, always: bool = False) -> None:
        """Hold so many bytes from now on; nothing changes once it is closed.

        Raises Refusal where others hold too many, unless it holds fewer than before or may ``always``.
        """
        self._room._set(self, count, always)

    def come(self, give_way: Callable[[], object]) -> None:
        """Say that the body begins to come.

        give_way is called, by any thread, when others need its bytes; they are given back already.
        """
        with self._room._lock:
            self.give_way = give_way
            self._room._coming[self] = None

    def came(self) -> None:
        """Say that the body is complete."""
        with self._room._lock:
            self._room._coming.pop(self, None)

    def close(self) -> None:
        """Give everything back."""
        with self._room._lock:
            if not self.closed:
                self._room._close(self)
