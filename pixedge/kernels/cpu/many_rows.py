"""Products of many rows with a packed 4-bit weight, for prompts: on matrix tiles, where the CPU has them.

The reference is ``functional.linear(x, dequantize_lines(weight, scales, zeros).to(x.dtype))``: weights are
rounded to bfloat16 once, sums are float32 and rounded to bfloat16 once, so a result is within 2^-8 of its own
size, and float32's rounding of the sum, of the exact product with bfloat16 weights.
"""

import torch
from torch import Tensor

from pixedge.kernels.cpu.compiled import Int4Weight, library, pointer, variant


def int4_many_rows(x: Tensor, packed: Int4Weight, residual: Tensor | None = None) -> Tensor | None:
    """Map x bfloat16 [tokens, in] to [tokens, out]; None where the CPU has no such kernel.

    packed is ``products.int4_weight``'s description, whose memory the caller keeps alive. residual, bfloat16
    [tokens, out], is added before the sum is rounded. x and residual are contiguous.
    """
    opened = library()
    if opened is None or variant() != "amx":
        return None
    assert x.dtype == torch.bfloat16 and x.ndim == 2 and x.shape[1] == packed.inputs, (
        f"x is {x.dtype} {tuple(x.shape)}, expected bfloat16 [tokens, {packed.inputs}]"
    )
    assert packed.inputs % packed.group == 0 and packed.group % 8 == 0, f"groups of {packed.group}"
    y = torch.empty(len(x), packed.outputs, dtype=x.dtype)
    assert residual is None or (residual.dtype == y.dtype and residual.shape == y.shape), (
        f"residual is {residual.dtype} {tuple(residual.shape)}, expected {tuple(y.shape)}"
    )
    failed = opened.pixedge_int4_many_rows_onto(
        pointer(x),
        len(x),
        packed.inputs,
        packed.lines,
        packed.scales,
        packed.zeros,
        packed.outputs,
        packed.group,
        pointer(residual),
        pointer(y),
    )
    return None if failed else y
