# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""From the product of the query, key and value weights to rotated queries and a written cache, in one kernel.

Rotary embedding in half-split form (arXiv 2104.09864): dimension i of a head turns with i + head_dim / 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.pages import PAGE, LayerPages
from pixedge.kernels.cuda.sums import load_sum


def rotate_and_write_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    sequences: Tensor,
    tables: Tensor,
    pages: LayerPages,
    dtype: torch.dtype,
) -> Tensor:
    """Do what ``rotate_and_write`` does, token by token."""
    tokens, width = qkv.shape[1:]
    kv_heads, head_dim = pages.kv_heads, pages.head_dim
    heads = width // head_dim - 2 * kv_heads
    x = qkv.float().sum(0).view(tokens, -1, head_dim)
    first, second = x[:, : heads + kv_heads].chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(dtype)
    values = x[:, heads + kv_heads :].to(dtype)
    for token, position in enumerate(positions.tolist()):
        if position < 0:
            continue
        page = int(tables[int(sequences[token]), position // PAGE])
        for stored, scales, new in (
            (pages.keys, pages.key_scales, turned[token, heads:]),
            (pages.values, pages.value_scales, values[token]),
        ):
            if scales is None:
                stored[page, :, position % PAGE] = new
                continue
            scale = (new.float().abs().amax(-1) / 127).half()
            q = torch.where(scale[:, None] > 0, new.float() / scale[:, None].float(), 0.0).nan_to_num(0.0)
            stored[page, :, position % PAGE] = q.round().clamp(-127, 127).to(torch.int8)
            scales[page, :, position % PAGE] = scale
    return turned[:, :heads].contiguous()


@triton.jit
def _store_side(
    pages, scales, at, row_at, first, second, lane, half, inside, EIGHT: tl.constexpr, HALF: tl.constexpr
):
    """Store the two halves of one token's key or value of one head, rounded to HALF first."""
    first = first.to(HALF)
    second = second.to(HALF)
    if EIGHT:
        a, b = first.to(tl.float32), second.to(tl.float32)
        most = tl.maximum(tl.max(tl.abs(a), axis=0), tl.max(tl.abs(b), axis=0))
        broken = tl.sum(((a != a) | (b != b)).to(tl.int32), axis=0) > 0
        scale = tl.div_rn(most, 127.0).to(tl.float16)
        # a row that is not finite gets a scale that is not, so that it stays so when it is read
        scale = tl.where(broken, float("nan"), scale.to(tl.float32)).to(tl.float16)
        divisor = scale.to(tl.float32)
        # adding and taking 1.5 * 2^23 rounds to the nearest integer, ties to even
        a = tl.div_rn(a, tl.where(divisor > 0, divisor, 1.0)) + 12582912.0 - 12582912.0
        b = tl.div_rn(b, tl.where(divisor > 0, divisor, 1.0)) + 12582912.0 - 12582912.0
        usable = (divisor > 0) & (divisor < float("inf"))
        a = tl.where(usable, tl.minimum(tl.maximum(a, -127.0), 127.0), 0.0)
        b = tl.where(usable, tl.minimum(tl.maximum(b, -127.0), 127.0), 0.0)
        tl.store(pages + at + lane, a.to(tl.int8), mask=inside)
        tl.store(pages + at + half + lane, b.to(tl.int8), mask=inside)
        tl.store(scales + row_at, scale)
    else:
        tl.store(pages + at + lane, first, mask=inside)
        tl.store(pages + at + half + lane, second, mask=inside)


@triton.jit
def _rotate_and_write(
    qkv,
    cos,
    sin,
    positions,
    sequences,
    tables,
    queries,
    keys,
    key_scales,
    values,
    value_scales,
    tokens,
    heads,
    kv_heads,
    half,
    max_pages,
    SPLITS: tl.constexpr,
    EIGHT: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, LANES)
    inside = lane < half
    width = (heads + 2 * kv_heads) * 2 * half
    at = token * width + head * 2 * half + lane
    first = load_sum(qkv, at, inside, tokens * width, SPLITS)
    second = load_sum(qkv, at + half, inside, tokens * width, SPLITS)
    if head < heads + kv_heads:
        c = tl.load(cos + token * half + lane, mask=inside, other=0.0)
        s = tl.load(sin + token * half + lane, mask=inside, other=0.0)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    if head < heads:
        query_at = (token * heads + head) * 2 * half + lane
        tl.store(queries + query_at, first.to(HALF), mask=inside)
        tl.store(queries + query_at + half, second.to(HALF), mask=inside)
    else:
        position = tl.load(positions + token)
        if position >= 0:
            sequence = tl.load(sequences + token)
            page = tl.load(tables + sequence * max_pages + position // 16).to(tl.int64)
            if head < heads + kv_heads:
                row = (page * kv_heads + head - heads) * 16 + position % 16
                _store_side(
                    keys, key_scales, row * 2 * half, row, first, second, lane, half, inside, EIGHT, HALF
                )
            else:
                row = (page * kv_heads + head - heads - kv_heads) * 16 + position % 16
                _store_side(
                    values, value_scales, row * 2 * half, row, first, second, lane, half, inside, EIGHT, HALF
                )


def rotate_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    sequences: Tensor,
    tables: Tensor,
    pages: LayerPages,
    queries: Tensor,
) -> Tensor:
    """Rotate queries and keys, store keys and values in their pages, and write the queries.

    qkv: [splits, tokens, (heads + 2 kv_heads) * head_dim], float32 sums or of queries' dtype: all queries,
    then all keys, then all values. cos, sin: float32 [tokens, head_dim / 2]. positions: int32 [tokens], where
    each token stands in its sequence; below 0 it is not stored. sequences: int32 [tokens], each token's row
    of tables. tables: int32 [sequences, max_pages]. queries: [tokens, heads, head_dim]. Keys and values are
    rounded to queries' dtype, and 8-bit pages then get round(x / scale) with scale = max|x| / 127 rounded to
    float16.
    """
    tuning.check_device(qkv, cos, sin, positions, sequences, tables, pages.keys, pages.key_scales, queries)
    pages.check(queries.dtype)
    tokens, heads, head_dim = queries.shape
    assert head_dim == pages.head_dim and head_dim % 2 == 0 and queries.is_contiguous()
    assert qkv.shape[1:] == (tokens, (heads + 2 * pages.kv_heads) * head_dim), f"qkv is {tuple(qkv.shape)}"
    assert qkv.is_contiguous() and qkv.dtype in (torch.float32, queries.dtype), f"qkv is {qkv.dtype}"
    for angles in (cos, sin):
        assert angles.shape == (tokens, head_dim // 2) and angles.dtype == torch.float32
        assert angles.is_contiguous()
    for index in (positions, sequences):
        assert index.shape == (tokens,) and index.dtype == torch.int32 and index.is_contiguous()
    assert tables.ndim == 2 and tables.dtype == torch.int32 and tables.is_contiguous()
    _rotate_and_write[(tokens, heads + 2 * pages.kv_heads)](
        qkv,
        cos,
        sin,
        positions,
        sequences,
        tables,
        queries,
        pages.keys,
        pages.key_scales,
        pages.values,
        pages.value_scales,
        tokens,
        heads,
        pages.kv_heads,
        head_dim // 2,
        tables.shape[1],
        SPLITS=len(qkv),
        EIGHT=pages.key_scales is not None,
        HALF=tl.float16 if queries.dtype == torch.float16 else tl.bfloat16,
        LANES=triton.next_power_of_2(head_dim // 2),
        num_warps=1 if head_dim <= 128 else 2,
    )
    return queries
