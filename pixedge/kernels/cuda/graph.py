"""Decoding steps captured as CUDA graphs, one for each of a few batch sizes.

A step of Pixtral-12B is 411 small kernels, 10 a layer and 11 around them; launched one by one the host could
not keep up with the device. A batch in between runs in the next larger graph, with rows that stand for no
sequence.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixedge.kernels.cuda.layout import BATCHES
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.kernels.cuda.step import StepBuffers, StepWeights, run_step

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a step that works on fixed buffers, and returns what repeats it."""


def cuda_capture() -> Capture:
    """Return a capture into CUDA graphs that share one memory pool."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Kernels are compiled and loaded at their first launch, which cannot be captured.
            step()
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            step()
        return graph.replay

    return capture


def direct(step: Callable[[], None]) -> Callable[[], None]:
    """Stand in for a capture where there are no graphs: run the step once and return it."""
    step()
    return step


class DecodeGraph:
    """A decoder's step over one set of pages, ready for any batch of 1 to the largest of ``batches``."""

    def __init__(
        self,
        weights: StepWeights,
        pages: Sequence[LayerPages],
        max_pages: int,
        *,
        batches: Sequence[int] = BATCHES,
        capture: Capture | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Allocate and capture; nothing is allocated after that.

        pages: each layer's. max_pages: the most pages of a sequence. capture: None makes CUDA graphs.
        progress is told how many are captured. The buffers stand for no sequence while the step is captured,
        so no page is written.
        """
        assert list(batches) == sorted(set(batches)) and batches[0] >= 1, f"batches {batches}"
        self.batches = tuple(batches)
        self.weights = weights
        largest, device = self.batches[-1], weights.norm.device
        self.buffers = StepBuffers.allocate(weights, largest, max_pages)
        pinned = device.type == "cuda"
        self._inputs = torch.zeros(2, largest, dtype=torch.int32, pin_memory=pinned)  # ids, positions
        self._tables = torch.zeros(largest, max_pages, dtype=torch.int32, pin_memory=pinned)
        self._rows: Tensor | None = None
        if weights.embeddings is None:
            self._rows = torch.zeros(largest, weights.config.dim, dtype=weights.norm.dtype, pin_memory=pinned)
        capture = cuda_capture() if capture is None else capture
        self._replays: dict[int, Callable[[], None]] = {}
        self._parts: list[StepBuffers] = []  # a graph reads them at every replay
        # The largest first: the others then fit into the memory that it left in the graphs' pool.
        for batch in reversed(self.batches):
            part = self.buffers if batch == largest else self.buffers.first(batch)
            self._parts.append(part)
            self._replays[batch] = capture(lambda part=part: run_step(weights, pages, part))  # type: ignore[misc]
            if progress:
                progress(len(self._replays))

    def step(
        self, ids: Tensor, positions: Tensor, tables: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run one token of each sequence; return logits float32 [n, vocab] and the most likely ids int32 [n].

        ids: int32 [n], on the CPU. positions: int32 [n], where each token stands. tables: int32 [n, pages],
        each sequence's pages, enough for its position. rows: the tokens' embeddings [n, dim], where they are
        in host memory. Both results are parts of fixed buffers that the next step overwrites; read what you
        need of them before that, which also makes sure that the inputs have been copied.
        """
        count, used = tables.shape
        assert ids.shape == positions.shape == (count,) and 1 <= count <= self.batches[-1], (
            f"{count} sequences"
        )
        assert used <= self._tables.shape[1], f"tables of {used} pages, room for {self._tables.shape[1]}"
        assert (rows is None) == (self._rows is None), "rows are given where embeddings are in host memory"
        batch = next(size for size in self.batches if size >= count)
        staged, buffers = self._inputs, self.buffers
        staged[0, :count], staged[1, :count] = ids, positions
        staged[0, count:batch], staged[1, count:batch] = 0, -1
        buffers.ids[:batch].copy_(staged[0, :batch], non_blocking=True)
        buffers.positions[:batch].copy_(staged[1, :batch], non_blocking=True)
        if not torch.equal(self._tables[:count, :used], tables):
            # Whole rows, which are one copy without a temporary; a sequence's pages change every 16th token.
            self._tables[:count, :used] = tables
            buffers.tables[:count].copy_(self._tables[:count], non_blocking=True)
        if rows is not None and self._rows is not None:
            self._rows[:count] = rows
            buffers.embedded[:count].copy_(self._rows[:count], non_blocking=True)
            buffers.residual[:count].copy_(buffers.embedded[:count])
        self.replay(batch)
        return buffers.logits[:count], buffers.chosen[:count]

    def replay(self, batch: int) -> None:
        """Run the step of one of the batch sizes on what the buffers hold."""
        self._replays[batch]()
