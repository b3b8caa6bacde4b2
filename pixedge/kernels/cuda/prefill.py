# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Causal attention of many queries a sequence over keys and values in pages.

One program takes a block of a sequence's queries of one head and runs over the keys that they may see with a
running softmax (Dao, FlashAttention-2, arXiv 2307.08691), so that no score leaves the chip.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.decoding import gather_reference
from pixedge.kernels.cuda.pages import LayerPages

QUERIES = 64
"""Queries a program takes."""


def attend_many_reference(
    q: Tensor, pages: LayerPages, tables: Tensor, starts: Tensor, firsts: Tensor
) -> Tensor:
    """Do what ``attend_many`` does, sequence by sequence, in float32."""
    out = torch.empty_like(q)
    for index, start in enumerate(starts.tolist()):
        own = slice(int(firsts[index]), int(firsts[index + 1]))
        tokens = own.stop - own.start
        k, v = gather_reference(pages, tables[index], start + tokens, q.shape[1])
        scores = torch.einsum("shd,htd->hst", q[own].float(), k) / math.sqrt(q.shape[2])
        unseen = torch.ones(tokens, start + tokens, dtype=torch.bool, device=q.device).triu(start + 1)
        scores = scores.masked_fill(unseen, -torch.inf)
        out[own] = torch.einsum("hst,htd->shd", torch.softmax(scores, -1), v).to(q.dtype)
    return out


@triton.jit
def _attend_block(
    q,
    keys,
    key_scales,
    values,
    value_scales,
    tables,
    starts,
    firsts,
    out,
    scale,
    heads,
    kv_heads,
    max_pages,
    head_dim,
    EIGHT: tl.constexpr,
    DOT: tl.constexpr,
    HALF: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    block, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(firsts + sequence)
    tokens = tl.load(firsts + sequence + 1) - first
    start = tl.load(starts + sequence)
    own = block * QUERIES + tl.arange(0, QUERIES)
    if block * QUERIES < tokens:
        kv_head = head // (heads // kv_heads)
        dim = tl.arange(0, DIM)
        wanted = (own < tokens)[:, None] & (dim < head_dim)[None, :]
        query = ((first + own).to(tl.int64) * heads + head)[:, None] * head_dim + dim[None, :]
        queries = tl.load(q + query, mask=wanted, other=0.0).to(DOT)
        most = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
        weight = tl.zeros((QUERIES,), dtype=tl.float32)
        total = tl.zeros((QUERIES, DIM), dtype=tl.float32)
        end = start + tl.minimum(tokens, (block + 1) * QUERIES)
        for tile in tl.range(0, end, KEYS, num_stages=STAGES):
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
            # every query sees the first key, so from the first tile on its highest score is finite
            seen = (token[None, :] <= (start + own)[:, None]) & inside[None, :]
            scores = tl.where(seen, scores, float("-inf"))
            new = tl.maximum(most, tl.max(scores, axis=1))
            shrink = tl.exp2(most - new)
            p = tl.exp2(scores - new[:, None])
            weight = weight * shrink + tl.sum(p, axis=1)
            v = tl.load(values + at, mask=held, other=0).to(DOT)
            if EIGHT:
                scales = tl.load(value_scales + row, mask=inside, other=0.0).to(tl.float32)
                largest = tl.max(scales, axis=0)
                p *= (scales / tl.where(largest > 0, largest, 1.0))[None, :]
                total = total * shrink[:, None] + tl.dot(p.to(DOT), v) * largest
            else:
                total = tl.dot(p.to(DOT), v, total * shrink[:, None])
            most = new
        tl.store(out + query, (total / weight[:, None]).to(HALF), mask=wanted)


def attend_many(
    q: Tensor,
    pages: LayerPages,
    tables: Tensor,
    starts: Tensor,
    firsts: Tensor,
    out: Tensor,
    longest: int,
) -> Tensor:
    """Attend with q [tokens, heads, head_dim], sequences side by side, over what each holds and itself.

    tables: int32 [sequences, max_pages]. starts: int32 [sequences], tokens held before these; the new ones'
    keys and values are written first. firsts: int32 [sequences + 1], where each sequence's tokens begin in q,
    and the end of the last. longest: the most tokens of a sequence, which only sizes the launch. Writes out,
    shaped and typed like q; token t of a sequence sees the tokens held and the new ones up to itself.
    """
    tuning.check_device(q, pages.keys, tables, starts, firsts, out)
    pages.check(q.dtype)
    sequences, (_, heads, head_dim) = len(tables), q.shape
    assert heads % pages.kv_heads == 0 and head_dim == pages.head_dim, f"q is {tuple(q.shape)}"
    assert q.is_contiguous() and out.is_contiguous() and out.shape == q.shape and out.dtype == q.dtype
    for index, shape in ((starts, (sequences,)), (firsts, (sequences + 1,)), (tables, tables.shape)):
        assert index.dtype == torch.int32 and index.shape == shape and index.is_contiguous()
    shapes = tuning.device(q.device).shapes.prefill
    half = tl.float16 if q.dtype == torch.float16 else tl.bfloat16
    _attend_block[(-(-longest // QUERIES), heads, sequences)](
        q,
        pages.keys,
        pages.key_scales,
        pages.values,
        pages.value_scales,
        tables,
        starts,
        firsts,
        out,
        math.log2(math.e) / math.sqrt(head_dim),
        heads,
        pages.kv_heads,
        tables.shape[1],
        head_dim,
        EIGHT=pages.key_scales is not None,
        DOT=tl.float32 if tuning.interpreted() else half,
        HALF=half,
        QUERIES=QUERIES,
        KEYS=shapes.keys,
        DIM=max(16, triton.next_power_of_2(head_dim)),
        STAGES=shapes.stages,
        num_warps=shapes.warps,
    )
    return out
