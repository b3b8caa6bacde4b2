# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Attention of one query a sequence over keys and values in pages, split over the context.

The queries that share a key head stand in one program, so each page is read once. A context is cut into
parts of about equal length that run side by side, each with a softmax of its own; a second kernel weighs them
(Dao et al., Flash-Decoding; the running softmax is Milakov and Gimelshein's, arXiv 1805.02867).
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.pages import PAGE, LayerPages


@dataclass(frozen=True)
class Parts:
    """Room for what the parts of a context found: one set serves all layers of a step.

    sums: float32 [sequences, heads, parts, head_dim], values weighted by 2^(score - highest). highest,
    weights: float32 [sequences, heads, parts], the highest score and the sum of the weights.
    """

    sums: Tensor
    highest: Tensor
    weights: Tensor

    @classmethod
    def allocate(
        cls, sequences: int, heads: int, head_dim: int, kv_heads: int, device: torch.device, parts: int = 0
    ) -> Self:
        """Make room for ``parts`` parts, or for as many as keep the device busy at this batch size."""
        parts = parts or tuning.parts(tuning.device(device), sequences, kv_heads)
        room = torch.empty(sequences * heads * parts * (head_dim + 2), dtype=torch.float32, device=device)
        return cls.within(room, sequences, heads, head_dim, parts)

    @classmethod
    def within(cls, room: Tensor, sequences: int, heads: int, head_dim: int, parts: int) -> Self:
        """Take the front of ``room``, flat float32, for ``parts`` parts: a power of two."""
        assert parts == triton.next_power_of_2(parts), f"{parts} parts are not a power of two"
        shape = (sequences, heads, parts)
        count = sequences * heads * parts
        sums, highest, weights = torch.split(room[: count * (head_dim + 2)], [count * head_dim, count, count])
        return cls(sums.view(*shape, head_dim), highest.view(shape), weights.view(shape))


def attend_reference(q: Tensor, pages: LayerPages, tables: Tensor, lengths: Tensor) -> Tensor:
    """Do what ``attend`` does, sequence by sequence: softmax(q k^T / sqrt(head_dim)) v in float32."""
    out = torch.zeros_like(q)
    for index, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        k, v = gather_reference(pages, tables[index], length, q.shape[1])
        scores = torch.einsum("hd,htd->ht", q[index].float(), k) / math.sqrt(q.shape[2])
        out[index] = torch.einsum("ht,htd->hd", torch.softmax(scores, -1), v).to(q.dtype)
    return out


def gather_reference(pages: LayerPages, table: Tensor, length: int, heads: int) -> tuple[Tensor, Tensor]:
    """Return keys and values of one sequence's first ``length`` tokens: float32 [heads, length, head_dim]."""
    used = table[: -(-length // PAGE)].long()
    found = []
    for stored, scales in ((pages.keys, pages.key_scales), (pages.values, pages.value_scales)):
        x = stored[used].float()  # [n, kv_heads, 16, head_dim]
        if scales is not None:
            x = x * scales[used].float()[..., None]
        x = x.transpose(0, 1).flatten(1, 2)[:, :length]
        found.append(x.repeat_interleave(heads // pages.kv_heads, dim=0))
    return found[0], found[1]


@triton.jit
def _attend_part(
    q,
    keys,
    key_scales,
    values,
    value_scales,
    tables,
    lengths,
    sums,
    highest,
    weights,
    scale,
    kv_heads,
    groups,
    max_pages,
    parts,
    head_dim,
    EIGHT: tl.constexpr,
    DOT: tl.constexpr,
    GROUPS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Attend with the queries of one key head over one part of one sequence's context."""
    sequence, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    # parts of whole tiles, so that a short context is not spread over programs of a few keys each
    tiles = (length + KEYS - 1) // KEYS
    tiles_a_part = (tiles + parts - 1) // parts
    start = part * tiles_a_part * KEYS
    end = tl.minimum(start + tiles_a_part * KEYS, length)
    group = tl.arange(0, GROUPS)
    dim = tl.arange(0, DIM)
    wanted = (group < groups)[:, None] & (dim < head_dim)[None, :]
    head = kv_head * groups + group
    query = (sequence * kv_heads * groups + head)[:, None] * head_dim + dim[None, :]
    queries = tl.load(q + query, mask=wanted, other=0.0).to(DOT)
    most = tl.full((GROUPS,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((GROUPS,), dtype=tl.float32)
    total = tl.zeros((GROUPS, DIM), dtype=tl.float32)
    for tile in tl.range(start, end, KEYS, num_stages=STAGES):
        token = tile + tl.arange(0, KEYS)
        inside = token < end
        page = tl.load(tables + sequence * max_pages + token // 16, mask=inside, other=0).to(tl.int64)
        row = (page * kv_heads + kv_head) * 16 + token % 16
        at = row[:, None] * head_dim + dim[None, :]
        held = inside[:, None] & (dim < head_dim)[None, :]
        k = tl.load(keys + at, mask=held, other=0).to(DOT)
        scores = tl.dot(queries, tl.trans(k)) * scale
        if EIGHT:
            scores *= tl.load(key_scales + row, mask=inside, other=0.0).to(tl.float32)[None, :]
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new = tl.maximum(most, tl.max(scores, axis=1))
        # a tile has at least one key, so the highest score is finite (or the scores are not numbers)
        shrink = tl.exp2(most - new)
        p = tl.exp2(scores - new[:, None])
        weight = weight * shrink + tl.sum(p, axis=1)
        v = tl.load(values + at, mask=held, other=0).to(DOT)
        if EIGHT:
            # relative to the tile's largest, or small scales would leave float16's range
            scales = tl.load(value_scales + row, mask=inside, other=0.0).to(tl.float32)
            largest = tl.max(scales, axis=0)
            p *= (scales / tl.where(largest > 0, largest, 1.0))[None, :]
            total = total * shrink[:, None] + tl.dot(p.to(DOT), v) * largest
        else:
            total = tl.dot(p.to(DOT), v, total * shrink[:, None])
        most = new
    found = (sequence * kv_heads * groups + head) * parts + part
    # in a form of its own: with a mask that is a tensor and a scalar triton 3.9's interpreter is lost
    begun = (group * 0 + start < end)[:, None]
    tl.store(sums + found[:, None] * head_dim + dim[None, :], total, mask=wanted & begun)
    tl.store(highest + found, most, mask=group < groups)
    tl.store(weights + found, weight, mask=group < groups)


@triton.jit
def _combine(
    sums,
    highest,
    weights,
    lengths,
    out,
    heads,
    parts,
    head_dim,
    HALF: tl.constexpr,
    PARTS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Weigh the parts of one head of one sequence; of those behind its end there are no sums."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    part, dim = tl.arange(0, PARTS), tl.arange(0, DIM)
    row = sequence * heads + head
    length = tl.load(lengths + sequence)
    tiles_a_part = ((length + KEYS - 1) // KEYS + parts - 1) // parts
    begun = part * tiles_a_part * KEYS < length
    empty = length == 0
    most = tl.load(highest + row * parts + part)
    top = tl.max(most, axis=0)
    share = tl.exp2(most - tl.where(empty, 0.0, top))
    weight = tl.sum(share * tl.load(weights + row * parts + part), axis=0)
    at = (row * parts + part)[:, None] * head_dim + dim[None, :]
    total = tl.load(sums + at, mask=begun[:, None] & (dim < head_dim)[None, :], other=0.0)
    total = tl.sum(total * share[:, None], axis=0) / tl.where(empty, 1.0, weight)
    tl.store(out + row * head_dim + dim, total.to(HALF), mask=dim < head_dim)


def attend(
    q: Tensor, pages: LayerPages, tables: Tensor, lengths: Tensor, parts: Parts, out: Tensor
) -> Tensor:
    """Attend with q [sequences, heads, head_dim] over the first ``lengths`` tokens of each sequence's pages.

    Each query sees all of them, so the step's own keys and values are written first and counted. tables:
    int32 [sequences, max_pages]. lengths: int32 [sequences], read on the device; 0 gives zeros. parts:
    scratch. Writes out, shaped and typed like q. Query head h reads key head h // (heads / kv_heads).
    """
    tuning.check_device(q, pages.keys, tables, lengths, parts.sums, out)
    pages.check(q.dtype)
    sequences, heads, head_dim = q.shape
    assert heads % pages.kv_heads == 0 and head_dim == pages.head_dim, f"q is {tuple(q.shape)}"
    assert q.is_contiguous() and out.is_contiguous() and out.shape == q.shape and out.dtype == q.dtype
    assert tables.ndim == 2 and len(tables) == sequences and tables.dtype == torch.int32
    assert lengths.shape == (sequences,) and lengths.dtype == torch.int32
    assert tables.is_contiguous() and lengths.is_contiguous()
    count = parts.highest.shape[2]
    assert parts.sums.shape == (sequences, heads, count, head_dim), f"parts of {tuple(parts.sums.shape)}"
    shape = tuning.device(q.device).shapes.decoding
    half = tl.float16 if q.dtype == torch.float16 else tl.bfloat16
    groups = heads // pages.kv_heads
    dim = max(16, triton.next_power_of_2(head_dim))
    _attend_part[(sequences, pages.kv_heads, count)](
        q,
        pages.keys,
        pages.key_scales,
        pages.values,
        pages.value_scales,
        tables,
        lengths,
        parts.sums,
        parts.highest,
        parts.weights,
        math.log2(math.e) / math.sqrt(head_dim),
        pages.kv_heads,
        groups,
        tables.shape[1],
        count,
        head_dim,
        EIGHT=pages.key_scales is not None,
        DOT=tl.float32 if tuning.interpreted() else half,
        GROUPS=max(16, triton.next_power_of_2(groups)),
        KEYS=shape.keys,
        DIM=dim,
        STAGES=shape.stages,
        num_warps=shape.warps,
    )
    _combine[(sequences, heads)](
        parts.sums,
        parts.highest,
        parts.weights,
        lengths,
        out,
        heads,
        count,
        head_dim,
        HALF=half,
        PARTS=count,
        KEYS=shape.keys,
        DIM=dim,
        num_warps=4,
    )
    return out
