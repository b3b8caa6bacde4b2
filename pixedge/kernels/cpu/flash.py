"""Attention of a prompt's tokens over pages, on matrix tiles.

The reference is ``kernels.attention.attend_pages``. Scores and sums are float32. A weight, which is at
most 1, is rounded to bfloat16 before it meets the values, as in torch's own kernel, so a
result is within 2^-9 of the largest value that the token sees, and then rounded.
"""

import torch
from torch import Tensor

from pixedge.kernels.attention import PAGE, Stored
from pixedge.kernels.cpu.compiled import library, pointer, variant


def flash_pages(
    q: Tensor,
    keys: Stored,
    values: Stored,
    table: Tensor,
    start: int,
) -> Tensor | None:
    """Let one sequence's q bfloat16 [tokens, heads, head_dim] read its pages, as ``attend_pages`` does.

    keys, values: one layer's pages [pages, kv_heads, 16, head_dim], bfloat16, or int8 with float16 scales
    [pages, kv_heads, 16]. table: int32 [n], the sequence's pages in order. None where the CPU or the head's
    width has no such kernel.
    """
    opened = library()
    tokens, heads, head_dim = q.shape
    if opened is None or variant() != "amx" or q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return None
    pages, kv_heads = keys[0].shape[:2]
    for side, scales in (keys, values):
        assert side.shape == (pages, kv_heads, PAGE, head_dim), f"pages of shape {tuple(side.shape)}"
        assert side.dtype == (torch.bfloat16 if scales is None else torch.int8), f"pages of {side.dtype}"
        assert scales is None or (scales.dtype == torch.float16 and scales.shape == side.shape[:3])
    used = -(-(start + tokens) // PAGE)
    assert table.dtype == torch.int32 and used <= len(table), f"{used} pages in a table of {len(table)}"
    assert tokens == 0 or (int(table[:used].min()) >= 0 and int(table[:used].max()) < pages)
    assert heads % kv_heads == 0 and start >= 0
    q, table = q.contiguous(), table.contiguous()
    out = torch.empty_like(q)
    if opened.pixedge_flash(
        pointer(q),
        tokens,
        heads,
        pointer(keys[0]),
        pointer(values[0]),
        pointer(keys[1]),
        pointer(values[1]),
        kv_heads,
        head_dim,
        pointer(table),
        start,
        pointer(out),
    ):
        return None
    return out
