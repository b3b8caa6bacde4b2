"""Which page of the cache holds what, who uses it, and which may be taken next.

A page is fresh (it holds nothing worth keeping), in use by one request or several, or idle: known by name,
used by nobody, and kept until its room is needed. Idle pages are taken back in the order of their last use.
Whoever uses a page also uses those before it in the text and gives them back last, so a text is forgotten
from its end.
"""

from collections.abc import Sequence


class Pages:
    """The books of a pool of ``count`` pages; numbers only, no tensors."""

    def __init__(self, count: int) -> None:
        """Begin with all pages fresh; the lowest are taken first, so that memory is touched as needed."""
        self.count = count
        self._fresh = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._idle: dict[int, None] = {}  # in the order of their last use
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._reserved = 0

    @property
    def available(self) -> int:
        """Pages that can still be reserved: fresh and idle ones that are promised to nobody."""
        return len(self._fresh) + len(self._idle) - self._reserved

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Return the pages known by the names, up to the first that is unknown."""
        found = []
        for name in names:
            page = self._page_of.get(name)
            if page is None:
                break
            found.append(page)
        return found

    def hold(self, page: int) -> None:
        """Count one more user of a known page."""
        self._idle.pop(page, None)
        self._users[page] += 1

    def reserve(self, count: int) -> bool:
        """Promise ``count`` pages to ``take``; False, and nothing promised, where there are not as many."""
        if count > self.available:
            return False
        self._reserved += count
        return True

    def unreserve(self, count: int) -> None:
        """Give back a promise of ``count`` pages that were not taken."""
        assert 0 <= count <= self._reserved
        self._reserved -= count

    def take(self) -> int:
        """Return a page that was reserved, for one user; the longest unused text is forgotten for it."""
        self.unreserve(1)
        if self._fresh:
            page = self._fresh.pop()
        else:
            page = next(iter(self._idle))
            del self._idle[page]
            self._forget(page)
        self._users[page] = 1
        return page

    def keep(self, page: int, name: bytes) -> int:
        """Make a full page known; return the page to use from now on.

        That is another one where the name is known already: two requests computed the same at a time. The
        page given then loses its user to the other one.
        """
        known = self._page_of.setdefault(name, page)
        if known == page:
            self._name_of[page] = name
        else:
            self.hold(known)
            self.release(page)
        return known

    def release(self, page: int) -> None:
        """Count one user less; the last one leaves a known page idle and any other fresh."""
        assert self._users[page] > 0, f"page {page} has no user"
        self._users[page] -= 1
        if self._users[page] == 0:
            if page in self._name_of:
                self._idle[page] = None
            else:
                self._fresh.append(page)

    def disown(self, page: int) -> None:
        """Let a page in use be found by nobody any more, because what it holds may be wrong."""
        assert self._users[page] > 0
        self._forget(page)

    def _forget(self, page: int) -> None:
        name = self._name_of.pop(page, None)
        if name is not None:
            del self._page_of[name]
