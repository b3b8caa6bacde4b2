"""Attention over keys and values that lie in pages of 16 tokens, in 16 bits or in 8.

The torch reference: it gathers a sequence's pages, some key heads at a time, and leaves the rest to torch. A
page of one layer is [kv_heads, 16, head_dim]; in 8 bits a token's vector of each head has one scale.
"""

import torch
from torch import Tensor
from torch.nn import functional

PAGE = 16
"""Tokens a page holds."""

Stored = tuple[Tensor, Tensor | None]
"""One layer's keys or values in pages [pages, kv_heads, 16, head_dim], and the scales of those in 8 bits."""

GATHERED_BYTES = 64 << 20
"""Bytes of gathered keys and values at a time, unless one head alone has more: bounds the scratch."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round x [..., n] to int8 with one float16 scale a row: q = round(x / scale), scale = max|x| / 127.

    The scale is rounded to float16 before it divides, and q is clamped to [-127, 127]. A row that is not
    finite gets a scale that is not, so that it stays so when it is read.
    """
    rows = x.float()
    scales = (rows.abs().amax(-1) / 127).half()
    divisor = scales.float()[..., None]
    q = torch.where(divisor > 0, rows / divisor, 0.0).nan_to_num(0.0)
    return q.round().clamp(-127, 127).to(torch.int8), scales


def dequantize_rows(q: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return q * scale [..., n] in ``dtype`` for q int8 [..., n] and scales float16 [...]."""
    return (q.float() * scales.float()[..., None]).to(dtype)


def write_pages(pages: Tensor, scales: Tensor | None, x: Tensor, page: Tensor, offset: Tensor) -> None:
    """Store x [tokens, kv_heads, head_dim], token t at ``pages[page[t], :, offset[t]]``.

    pages: [pages, kv_heads, 16, head_dim], int8 with float16 scales [pages, kv_heads, 16], or without
    any of x's dtype. page, offset: integers [tokens] on the pages' device.
    """
    _check_pages(pages, scales, x.dtype)
    assert x.shape[1:] == (pages.shape[1], pages.shape[3]), f"{x.shape} into pages of {pages.shape}"
    assert page.shape == offset.shape == (len(x),)
    if scales is None:
        pages[page, :, offset] = x
    else:
        pages[page, :, offset], scales[page, :, offset] = quantize_rows(x)


def read_pages(
    pages: Tensor, scales: Tensor | None, table: Tensor, length: int, heads: slice, dtype: torch.dtype
) -> Tensor:
    """Gather the first ``length`` tokens of the pages in ``table`` [n]: [heads, length, head_dim]."""
    table = table[: -(-length // PAGE)]
    found = pages[table, heads]  # [n, heads, 16, head_dim]
    if scales is not None:
        found = dequantize_rows(found, scales[table, heads], dtype)
    return found.transpose(0, 1).flatten(1, 2)[:, :length]


def attend_pages(
    q: Tensor,
    keys: Stored,
    values: Stored,
    table: Tensor,
    start: int,
    mask: Tensor | None,
) -> Tensor:
    """Let one sequence's q [tokens, heads, head_dim] read the start + tokens keys and values in its pages.

    keys, values: pages and scales as in ``write_pages``. table: integers [n], the sequence's pages in order.
    mask: what ``causal_mask`` gives for these tokens. Query head h reads key head h // (heads / kv_heads);
    scores are scaled by head_dim ** -0.5. The result is shaped like q.
    """
    tokens, heads, head_dim = q.shape
    kv_heads, end = keys[0].shape[1], start + tokens
    _check_pages(*keys, q.dtype)
    _check_pages(*values, q.dtype)
    assert heads % kv_heads == 0 and len(table) * PAGE >= end, f"{end} tokens in {len(table)} pages"
    grouped = q.reshape(tokens, kv_heads, -1, head_dim).permute(
        1, 2, 0, 3
    )  # [kv_heads, groups, tokens, head_dim]
    out = torch.empty(tokens, kv_heads, heads // kv_heads, head_dim, dtype=q.dtype, device=q.device)
    at_once = max(1, GATHERED_BYTES // (2 * end * head_dim * q.element_size()))
    for part in (slice(at, at + at_once) for at in range(0, kv_heads, at_once)):
        k, v = (read_pages(*side, table, end, part, q.dtype)[:, None] for side in (keys, values))
        if tokens == 1:
            # The queries that share a key stand in as a sequence of queries: the pages are read once.
            found = functional.scaled_dot_product_attention(grouped[part].transpose(1, 2), k, v)
            found = found.transpose(1, 2)
        else:
            shared = (-1, heads // kv_heads, -1, -1)
            found = functional.scaled_dot_product_attention(
                grouped[part], k.expand(shared), v.expand(shared), attn_mask=mask, is_causal=mask is None
            )
        out[:, part] = found.permute(2, 0, 1, 3)
    return out.flatten(1, 2)


def causal_mask(start: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Give what is added to the scores of ``tokens`` queries behind ``start`` keys: [tokens, start + tokens].

    None where nothing needs adding: one token sees all keys, and without earlier ones torch knows the rule.
    """
    if start == 0 or tokens == 1:
        return None
    # In the scores' dtype: from booleans torch would make this again in every layer.
    return torch.full((tokens, start + tokens), -torch.inf, dtype=dtype, device=device).triu_(start + 1)


def _check_pages(pages: Tensor, scales: Tensor | None, dtype: torch.dtype) -> None:
    assert pages.ndim == 4 and pages.shape[2] == PAGE, f"pages of shape {tuple(pages.shape)}"
    if scales is None:
        assert pages.dtype == dtype, f"pages of {pages.dtype} for activations of {dtype}"
    else:
        assert pages.dtype == torch.int8 and scales.dtype == torch.float16
        assert scales.shape == pages.shape[:3], f"scales {tuple(scales.shape)} of {tuple(pages.shape)}"
