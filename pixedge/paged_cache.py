"""The cache that requests share: which pages each one holds, which it may still take, which it found."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pixedge.kernels.attention import PAGE
from pixedge.kv_cache import PagedStep, PagePool
from pixedge.pages import Pages
from pixedge.request import Request


class PagedCache:
    """A pool of pages and its books, in terms of requests."""

    def __init__(self, pool: PagePool) -> None:
        """Begin with an empty pool."""
        self.pool = pool
        self.pages = Pages(pool.pages)

    @property
    def tokens(self) -> int:
        """How many tokens there is room for."""
        return self.pages.count * PAGE

    def admit(self, request: Request) -> bool:
        """Promise a request all pages that it can ever need; False, with nothing held, if too few are."""
        self.reuse(request)
        missing = len(request.table) - request.pages
        if not self.pages.reserve(missing):
            self.release(request)
            request.cached = 0
            return False
        request.reserved = missing
        return True

    def reuse(self, request: Request) -> None:
        """Let a request of which nothing was computed yet use the known pages that its prompt begins with.

        It may be asked again, as others make more pages known; once a chunk has begun nothing changes. At
        least the prompt's last token is left to compute: the answer begins with its logits.
        """
        if not request.pages * PAGE == request.held == request.cached:
            return
        names = request.names.first((len(request.prompt.ids) - 1) // PAGE)
        for page in self.pages.find(names)[request.pages :]:
            self.pages.hold(page)
            request.table[request.pages] = page
            request.pages += 1
            if request.reserved:
                request.reserved -= 1
                self.pages.unreserve(1)
        request.kept = request.pages
        request.held = request.cached = request.pages * PAGE

    def keep(self, request: Request, tokens: int) -> None:
        """Count ``tokens`` more as held and make the pages that they filled known."""
        request.held += tokens
        full = request.held // PAGE
        names = request.names.first(full)
        for at in range(request.kept, full):
            request.table[at] = self.pages.keep(int(request.table[at]), names[at])
        request.kept = full

    def release(self, request: Request, *, disown: bool = False) -> None:
        """Take back all that a request holds; with ``disown`` nobody shall find what it computed."""
        if disown:
            for page in request.table[request.cached // PAGE : request.kept]:
                self.pages.disown(int(page))
        for page in request.table[: request.pages][::-1]:
            self.pages.release(int(page))
        self.pages.unreserve(request.reserved)
        request.pages = request.kept = request.reserved = request.held = 0

    def take(self, parts: Sequence[tuple[Request, int]]) -> NDArray[np.int32]:
        """Take the pages for some tokens of each request; return all that it has, int32 [requests, pages]."""
        for request, count in parts:
            while request.pages * PAGE < request.held + count:
                request.table[request.pages] = self.pages.take()
                request.pages += 1
                request.reserved -= 1
        tables = np.zeros((len(parts), max(request.pages for request, _ in parts)), np.int32)
        for row, (request, _) in zip(tables, parts, strict=True):
            row[: request.pages] = request.table[: request.pages]
        return tables

    def lay_out(self, parts: Sequence[tuple[Request, int]]) -> PagedStep:
        """Lay out a step of some tokens of each request, taking pages for them."""
        tables = self.take(parts)
        starts, counts = zip(*((request.held, count) for request, count in parts), strict=True)
        return PagedStep(
            self.pool,
            torch.from_numpy(tables),
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(counts, dtype=torch.int32),
            prompt=any(request.prefilling for request, _ in parts),
        )
