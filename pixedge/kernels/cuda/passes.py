"""Everything that the GPU path holds: weights, graphs, buffers; a step of answers or a chunk of prompts.

All memory is taken and every kernel compiled when this is made; afterwards nothing is.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixedge.kernels.cuda import graph, int8, sampling
from pixedge.kernels.cuda.choosing import Chooser, Rule
from pixedge.kernels.cuda.chunk import SLICED, ChunkBuffers, ChunkLayout, ChunkPlaces, run_chunk
from pixedge.kernels.cuda.layout import MAX_ROWS, PAGE, batches
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.kernels.cuda.step import StepWeights

Chosen = tuple[NDArray[np.int32], list[float]]
"""Ids [rows], -1 where logits are not finite, and their log-probabilities."""


class Passes:
    """Runs tokens through a decoder on the device, over one set of pages."""

    def __init__(
        self,
        weights: StepWeights,
        table: Tensor | None,
        pages: Sequence[LayerPages],
        *,
        chunk: int,
        requests: int,
        max_pages: int,
        capture: graph.Capture | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Take all memory, compile and capture.

        table: embeddings [vocab, dim] in host memory, or None where ``weights`` has them. pages: each
        layer's. chunk: the most tokens of prompts in a pass. requests: the most sequences in a pass.
        max_pages: the most pages of a sequence. capture: how steps are repeated; None makes CUDA graphs on a
        GPU, and calls them elsewhere. progress(done, total) is called as it goes.
        """
        assert (table is None) == (weights.embeddings is not None), "one table of embeddings"
        self.weights, self.pages, self._table = weights, pages, table
        device = weights.norm.device
        if capture is None and device.type != "cuda":
            capture = graph.direct
        sizes = batches(requests)
        tell = progress or (lambda done, total: None)
        total = len(sizes) + 1
        tell(0, total)
        self.buffers = ChunkBuffers.allocate(weights, chunk, requests, max_pages)
        self._places = ChunkPlaces(self.buffers, requests, max_pages)
        self._rows: Tensor | None = None
        if table is not None:
            shape = (chunk, weights.config.dim)
            self._rows = torch.zeros(shape, dtype=weights.norm.dtype, pin_memory=device.type == "cuda")
        # A chunk is sent from page-locked memory, which the next one must not overwrite before it is read.
        self._sent = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.graph = graph.DecodeGraph(
            weights,
            pages,
            max_pages,
            batches=sizes,
            capture=capture,
            progress=lambda done: tell(done, total),
        )
        self._layout: ChunkLayout | None = None
        self.largest = sizes[-1]
        self._chooser = Chooser(weights.config, self.largest, device)
        if device.type == "cuda":
            self._warm_up(chunk)
        tell(total, total)

    # Answers

    def step(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        tables: NDArray[np.int32],
        rules: Sequence[Rule] | None,
    ) -> Chosen | None:
        """Run one token of each of up to ``largest`` sequences; choose by the rules, where there are any.

        positions: where each token stands. tables: [n, pages]. ``logits`` gives the logits behind it.
        """
        staged = torch.tensor((ids, positions), dtype=torch.int32)
        rows = None if self._table is None else self._table[staged[0].long()]
        self.graph.step(staged[0], staged[1], torch.from_numpy(tables), rows)
        return None if rules is None else self._chooser.choose(self.graph.buffers, rules)

    def logits(self, row: int) -> Tensor:
        """Copy a row of the logits of the last step or ``head`` to the CPU: float32 [vocab]."""
        return self.graph.buffers.logits[row].to("cpu", copy=True)

    # Prompts

    def embed(
        self, ids: Sequence[int], tables: NDArray[np.int32], spans: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Lay a chunk out and look its tokens up: [tokens, dim], to be changed where pictures are.

        ids: the tokens of all sequences side by side. tables: [sequences, pages]. spans: (start, count) of
        each sequence. The result is what ``run`` takes.
        """
        if self._sent is not None:
            self._sent.synchronize()
        self._layout = self._places.lay_out(tables, spans, ids)
        out = self.buffers.embedded[: len(ids)]
        if self.weights.embeddings is not None:
            torch.index_select(self.weights.embeddings, 0, self._layout.ids, out=out)
        elif self._table is not None and self._rows is not None:
            staged = self._rows[: len(ids)]
            staged.copy_(self._table[torch.tensor(ids)])
            out.copy_(staged, non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        return out

    def run(self) -> Tensor:
        """Run what was embedded into its pages; return hidden states [tokens, dim], till the next chunk."""
        assert self._layout is not None, "nothing was embedded"
        return run_chunk(self.weights, self.pages, self.buffers, self._layout)

    def head(self, hidden: Tensor, rows: Sequence[int], rules: Sequence[Rule] | None) -> Chosen | None:
        """Make logits of up to ``largest`` rows of hidden states; choose by the rules, if there are any."""
        b, count = self.graph.buffers, len(rows)
        for place, row in enumerate(rows):
            b.normed[place].copy_(hidden[row])
        self._head(b.normed[:count])
        if rules is None:
            return None
        sampling.tell(b.logits[:count], b.chosen[:count], b.totals[:count], b.told[:count])
        return self._chooser.choose(b, rules)

    def log_probabilities(self, hidden: Tensor, following: Sequence[int]) -> list[float]:
        """Return the log-probability of each token behind hidden states [tokens, dim]."""
        b, found = self.graph.buffers, []
        for start in range(0, len(following), self.largest):
            ids = following[start : start + self.largest]
            count = len(ids)
            self._head(hidden[start : start + count])
            b.ids[:count].copy_(torch.tensor(ids, dtype=torch.int32))
            sampling.tell(b.logits[:count], b.ids[:count], b.totals[:count], b.told[:count])
            found += self._chooser.read(b.told[:count])[1]
        return found

    def _head(self, hidden: Tensor) -> None:
        """Fill logits, the most likely ids and totals from normalised hidden states [n, dim]."""
        b, count = self.graph.buffers, len(hidden)
        weights = self.weights
        int8.head(hidden, weights.head, weights.head_scales, b.logits[:count])
        sampling.greedy(b.logits[:count], b.room.first(count), b.chosen[:count])

    def _warm_up(self, chunk: int) -> None:
        """Run chunks of every kind of size, so that all kernels are compiled and all scratch is taken.

        Triton compiles a kernel for numbers of 1, multiples of 16 and others. The chunks are written into
        the first page, which nobody has used yet.
        """
        tables = np.zeros((1, self._places.max_pages), np.int32)
        sizes = {1, 7, 9, MAX_ROWS, MAX_ROWS + 1, SLICED + 1, SLICED + 16, chunk}
        room = min(chunk, self._places.max_pages * PAGE)
        for tokens in sorted(size for size in sizes if size <= room):
            self.embed([0] * tokens, tables, [(0, tokens)])
            hidden = self.run()
        for count in range(1, self.largest + 1):
            rules = [Rule(temperature=1.0, top_p=0.9, uniform=0.5), *[Rule(temperature=1.0)] * (count - 1)]
            self.head(hidden, [0] * count, rules)
            self.head(hidden, [0] * count, [Rule(temperature=1.0)] * count)
        torch.cuda.synchronize(self.weights.norm.device)
