"""A chunk of prompts through the whole decoder, on the weights that decoding steps use.

Sequences lie side by side. Products of more rows than ``SLICED`` unpack the weight once; fewer go 16 rows at
a time through the kernel of few rows, which reads the packed weight anew for each 16: half a byte a weight,
where unpacking writes two and reads two and a half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pixedge.kernels.cuda import activation, int4, norm, prefill, rotary, sums, unpacking
from pixedge.kernels.cuda.int4 import MAX_ROWS, Int4Weight
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.kernels.cuda.step import StepWeights
from pixedge.rope import frequencies

SLICED = 96
"""Rows up to which a product goes 16 at a time: below the 144 where both ways move the same bytes."""


@dataclass(frozen=True)
class ChunkBuffers:
    """What chunks of up to ``tokens`` tokens write on their way; made once, used for every chunk.

    residual: float32 [tokens, dim]. scratch: flat, of the activations' type, as large as the largest weight.
    partials: flat float32, the partial sums of 16 rows. The others: [tokens, width] of the activations' type.
    """

    residual: Tensor
    normed: Tensor
    qkv: Tensor
    queries: Tensor
    attended: Tensor
    added: Tensor
    gate_up: Tensor
    activated: Tensor
    rates: Tensor
    scratch: Tensor
    partials: Tensor

    @classmethod
    def allocate(cls, weights: StepWeights, tokens: int) -> Self:
        """Make the buffers on the weights' device."""
        device, dtype, layer = weights.norm.device, weights.norm.dtype, weights.layers[0]
        products = (layer.qkv, layer.o, layer.gate_up, layer.down)

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        rows = min(tokens, MAX_ROWS)
        partials = max(
            int4.splits_for(weight, count) * count * weight.out_features
            for weight in products
            for count in range(1, rows + 1)
        )
        return cls(
            residual=empty(tokens, weights.dim, dtype=torch.float32),
            normed=empty(tokens, weights.dim),
            qkv=empty(tokens, layer.qkv.out_features),
            queries=empty(tokens, weights.heads, weights.head_dim),
            attended=empty(tokens, weights.heads, weights.head_dim),
            added=empty(tokens, weights.dim),
            gate_up=empty(tokens, layer.gate_up.out_features),
            activated=empty(tokens, layer.down.in_features),
            rates=frequencies(weights.head_dim, weights.rope_theta, device),
            scratch=empty(max(weight.out_features * weight.in_features for weight in products)),
            partials=empty(partials, dtype=torch.float32),
        )


@dataclass(frozen=True)
class ChunkLayout:
    """Which token of a chunk belongs where; all int32 on the device, as ``prefill.attend_many`` takes them.

    positions, sequences: [tokens]. tables: [sequences, max_pages]. starts: [sequences]. firsts: [sequences +
    1]. longest: the most tokens that a sequence has in the chunk.
    """

    positions: Tensor
    sequences: Tensor
    tables: Tensor
    starts: Tensor
    firsts: Tensor
    longest: int

    @classmethod
    def lay_out(cls, tables: Tensor, starts: Tensor, counts: Tensor, device: torch.device) -> Self:
        """Lay out ``counts`` tokens behind ``starts`` held ones of each sequence; int32 on the CPU."""
        spans = list(zip(starts.tolist(), counts.tolist(), strict=True))
        positions = torch.cat([torch.arange(start, start + count) for start, count in spans])
        sequences = torch.repeat_interleave(torch.arange(len(spans)), counts.long())
        firsts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.long().cumsum(0)])
        positions, sequences, firsts, tables, starts = (
            each.contiguous().to(device, torch.int32)
            for each in (positions, sequences, firsts, tables, starts)
        )
        longest = max(count for _, count in spans)
        return cls(positions, sequences, tables, starts, firsts, longest)


def run_chunk(
    weights: StepWeights,
    pages: Sequence[LayerPages],
    buffers: ChunkBuffers,
    x: Tensor,
    layout: ChunkLayout,
) -> Tensor:
    """Run embeddings x [tokens, dim] through all layers, into their pages; return hidden states.

    The result [tokens, dim], normalised, is part of the buffers, which the next chunk overwrites.
    ``int8.head`` makes logits of the rows that are wanted.
    """
    n, eps = len(x), weights.eps
    assert n <= len(buffers.residual), f"{n} tokens in buffers for {len(buffers.residual)}"
    assert layout.positions.shape == (n,), f"{n} embeddings for {len(layout.positions)} positions"
    own = {name: value[:n] for name, value in vars(buffers).items() if name not in SHARED}
    residual, normed, activated = own["residual"], own["normed"], own["activated"]
    residual.copy_(x)
    angles = layout.positions[:, None] * buffers.rates
    cos, sin = angles.cos(), angles.sin()
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


SHARED = frozenset({"rates", "scratch", "partials"})
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
