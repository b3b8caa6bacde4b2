# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""SwiGLU's middle: SiLU(gate) * up (arXiv 2002.05202), from one product that holds both."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.sums import load_sum

COLUMNS = 1024


def silu_mul_reference(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """Return silu(gate) * up, rounded once to dtype: [rows, n] from partials [splits, rows, 2n]."""
    gate, up = partials.float().sum(0).chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(dtype)


@triton.jit
def _silu_mul(partials, out, rows, n, SPLITS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    at = row * 2 * n + column
    gate = load_sum(partials, at, inside, rows * 2 * n, SPLITS)
    up = load_sum(partials, at + n, inside, rows * 2 * n, SPLITS)
    # exp(-gate) may overflow to infinity, and gate / infinity is the 0 that it should be
    silu = gate / (1.0 + tl.exp(-gate))
    tl.store(out + row * n + column, (silu * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(partials: Tensor, out: Tensor) -> Tensor:
    """Write silu(gate) * up to out [rows, n] for partials [splits, rows, 2n], gate before up.

    partials are float32, or of out's dtype (a product of many rows, as [1, rows, 2n]).
    """
    tuning.check_device(partials, out)
    rows, n = out.shape
    assert partials.shape[1:] == (rows, 2 * n), f"{tuple(partials.shape)} into {tuple(out.shape)}"
    assert partials.is_contiguous() and out.is_contiguous()
    assert partials.dtype in (torch.float32, out.dtype), f"{partials.dtype} into {out.dtype}"
    _silu_mul[(rows, -(-n // COLUMNS))](
        partials,
        out,
        rows,
        n,
        SPLITS=len(partials),
        COLUMNS=min(COLUMNS, triton.next_power_of_2(n)),
        num_warps=4,
    )
    return out
