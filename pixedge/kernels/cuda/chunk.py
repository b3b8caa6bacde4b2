"""A chunk of prompts through the whole decoder, on the weights that decoding steps use.

Sequences lie side by side. Products of more rows than ``SLICED`` unpack the weight once; fewer go 16 rows at
a time through the kernel of few rows, which reads the packed weight anew for each 16: half a byte a weight,
where unpacking writes two and reads two and a half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixedge.kernels.cuda import (
    activation,
    footprint,
    int4,
    norm,
    prefill,
    rotary,
    sums,
    tuning,
    unpacking,
)
from pixedge.kernels.cuda.int4 import Int4Weight
from pixedge.kernels.cuda.layout import MAX_ROWS
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.kernels.cuda.step import StepWeights, make
from pixedge.rope import frequencies

SLICED = 96
"""Rows up to which a product goes 16 at a time: below the 144 where both ways move the same bytes."""


@dataclass(frozen=True)
class ChunkBuffers:
    """What chunks of up to ``tokens`` tokens write on their way; made once, used for every chunk.

    embedded: [tokens, dim], which the caller fills. residual: float32 [tokens, dim]. scratch: flat, of the
    activations' type, as large as the largest weight. partials: flat float32, the partial sums of 16 rows.
    places: flat int32, see ``ChunkPlaces``. The others: [tokens, width], angles float32 and the rest of the
    activations' type.
    """

    places: Tensor
    embedded: Tensor
    residual: Tensor
    normed: Tensor
    qkv: Tensor
    queries: Tensor
    attended: Tensor
    added: Tensor
    gate_up: Tensor
    activated: Tensor
    rates: Tensor
    angles: Tensor
    cos: Tensor
    sin: Tensor
    scratch: Tensor
    partials: Tensor

    @classmethod
    def allocate(cls, weights: StepWeights, tokens: int, sequences: int, max_pages: int) -> Self:
        """Make the buffers on the weights' device, for chunks of up to ``sequences`` sequences."""
        config, device = weights.config, weights.norm.device
        shapes = footprint.chunk_shapes(config, tokens, sequences, max_pages, tuning.device(device))
        made = make(shapes, weights.norm.dtype, device)
        made["rates"].copy_(frequencies(config.head_dim, config.rope_theta, device))
        return cls(**made)


@dataclass(frozen=True)
class ChunkLayout:
    """Which token of a chunk belongs where; all int32 on the device, as ``prefill.attend_many`` takes them.

    ids, positions, sequences: [tokens]. tables: [sequences, max_pages]. starts: [sequences]. firsts:
    [sequences + 1]. longest: the most tokens that a sequence has in the chunk.
    """

    ids: Tensor
    positions: Tensor
    sequences: Tensor
    tables: Tensor
    starts: Tensor
    firsts: Tensor
    longest: int


class ChunkPlaces:
    """Lays chunks out in memory that was taken once; one copy brings a layout to the device."""

    def __init__(self, buffers: ChunkBuffers, sequences: int, max_pages: int) -> None:
        """Lay out in ``buffers.places``, which were allocated for as many sequences and pages."""
        tokens, flat = len(buffers.embedded), buffers.places
        assert len(flat) == footprint.place_count(tokens, sequences, max_pages)
        self._device = flat
        self._host = torch.zeros(len(flat), dtype=torch.int32, pin_memory=flat.device.type == "cuda")
        self._numbers: NDArray[np.int32] = self._host.numpy()
        self.tokens, self.sequences, self.max_pages = tokens, sequences, max_pages

    def lay_out(
        self,
        tables: NDArray[np.int32],
        spans: Sequence[tuple[int, int]],
        ids: Sequence[int] | None = None,
    ) -> ChunkLayout:
        """Lay out (start, count) of each sequence: so many tokens behind those that are held.

        tables: [sequences, pages], enough pages for each. ids: the chunk's tokens side by side; None where
        they are not looked up on the device. What an earlier layout says is lost.
        """
        total = sum(count for _, count in spans)
        assert 1 <= len(spans) <= self.sequences and total <= self.tokens, f"{total} tokens in {spans}"
        assert len(tables) == len(spans) and tables.shape[1] <= self.max_pages, f"tables {tables.shape}"
        at = 0

        def take(count: int, used: int) -> tuple[NDArray[np.int32], Tensor]:
            nonlocal at
            begin, at = at, at + -(-count // 16) * 16
            return self._numbers[begin : begin + used], self._device[begin : begin + used]

        host_ids, own_ids = take(self.tokens, total)
        positions, own_positions = take(self.tokens, total)
        sequences, own_sequences = take(self.tokens, total)
        starts, own_starts = take(self.sequences, len(spans))
        firsts, own_firsts = take(self.sequences + 1, len(spans) + 1)
        if ids is not None:
            host_ids[:] = ids
        first = 0
        firsts[0] = 0
        for index, (start, count) in enumerate(spans):
            positions[first : first + count] = np.arange(start, start + count)
            sequences[first : first + count] = index
            starts[index] = start
            first += count
            firsts[index + 1] = first
        end = at + len(spans) * self.max_pages
        self._numbers[at:end].reshape(-1, self.max_pages)[:, : tables.shape[1]] = tables
        self._device[:end].copy_(self._host[:end], non_blocking=True)
        return ChunkLayout(
            own_ids,
            own_positions,
            own_sequences,
            self._device[at:end].view(-1, self.max_pages),
            own_starts,
            own_firsts,
            max(count for _, count in spans),
        )


def run_chunk(
    weights: StepWeights,
    pages: Sequence[LayerPages],
    buffers: ChunkBuffers,
    layout: ChunkLayout,
) -> Tensor:
    """Run the first embeddings of ``buffers.embedded`` through all layers, into their pages.

    Returns hidden states [tokens, dim], normalised: a part of the buffers, which the next chunk overwrites.
    ``int8.head`` makes logits of the rows that are wanted.
    """
    n, eps = len(layout.positions), weights.config.norm_eps
    assert n <= len(buffers.residual), f"{n} tokens in buffers for {len(buffers.residual)}"
    own = {name: value[:n] for name, value in vars(buffers).items() if name not in SHARED}
    residual, normed, activated, cos, sin = (
        own[name] for name in ("residual", "normed", "activated", "cos", "sin")
    )
    residual.copy_(own["embedded"])
    torch.mul(layout.positions[:, None], buffers.rates, out=own["angles"])
    torch.cos(own["angles"], out=cos)
    torch.sin(own["angles"], out=sin)
    added: Tensor | None = None
    for layer, held in zip(weights.layers, pages, strict=True):
        norm.add_norm(residual, added, layer.input_norm, eps, normed)
        qkv = _product(normed, layer.qkv, own["qkv"], buffers)
        rotary.rotate_and_write(
            qkv, cos, sin, layout.positions, layout.sequences, layout.tables, held, own["queries"]
        )
        prefill.attend_many(
            own["queries"],
            held,
            layout.tables,
            layout.starts,
            layout.firsts,
            own["attended"],
            layout.longest,
        )
        added = _product(own["attended"].view(n, -1), layer.o, own["added"], buffers)
        norm.add_norm(residual, added, layer.post_norm, eps, normed)
        activation.silu_mul(_product(normed, layer.gate_up, own["gate_up"], buffers), activated)
        added = _product(activated, layer.down, own["added"], buffers)
    return norm.add_norm(residual, added, weights.norm, eps, normed)


SHARED = frozenset({"rates", "scratch", "partials", "places"})
"""The buffers that are not one row a token."""


def _product(x: Tensor, weight: Int4Weight, out: Tensor, buffers: ChunkBuffers) -> Tensor:
    """Multiply x [tokens, in] with a weight into out [tokens, out]; return it as [1, tokens, out]."""
    if len(x) > SLICED:
        unpacking.many_rows(x, weight, buffers.scratch, out)
    else:
        for rows, result in zip(torch.split(x, MAX_ROWS), torch.split(out, MAX_ROWS), strict=True):
            shape = (int4.splits_for(weight, len(rows)), len(rows), weight.out_features)
            partials = buffers.partials[: shape[0] * shape[1] * shape[2]].view(shape)
            sums.add_partials(int4.few_rows(rows, weight, partials, shape[0]), None, result)
    return out[None]
