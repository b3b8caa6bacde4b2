# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Adding up the partial sums of a split product, where no other kernel does it on the way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning

COLUMNS = 1024


def add_partials_reference(partials: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return partials [splits, rows, n] summed over splits plus residual [rows, n], rounded once."""
    total = partials.float().sum(0)
    return (total if residual is None else total + residual.float()).to(dtype)


@triton.jit
def load_sum(partials, at, mask, stride, SPLITS: tl.constexpr):
    """Add up partials[split * stride + at] over splits, in order: float32, shaped like ``at``."""
    total = tl.load(partials + at, mask=mask, other=0.0).to(tl.float32)
    # Unrolled, so that all loads are under way before the first sum waits for one.
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partials + split * stride + at, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def _add_partials(
    partials, residual, out, elements, SPLITS: tl.constexpr, RESIDUAL: tl.constexpr, COLUMNS: tl.constexpr
):
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < elements
    total = load_sum(partials, at, inside, elements, SPLITS)
    if RESIDUAL:
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def add_partials(partials: Tensor, residual: Tensor | None, out: Tensor) -> Tensor:
    """Sum partials float32 [splits, rows, n] in order, add residual [rows, n], round to out [rows, n]."""
    tuning.check_device(partials, residual, out)
    assert partials.ndim == 3 and partials.is_contiguous() and out.is_contiguous()
    assert partials.dtype == torch.float32 and partials.shape[1:] == out.shape, f"{tuple(partials.shape)}"
    assert residual is None or (residual.shape == out.shape and residual.is_contiguous())
    _add_partials[(-(-out.numel() // COLUMNS),)](
        partials,
        residual,
        out,
        out.numel(),
        SPLITS=len(partials),
        RESIDUAL=residual is not None,
        COLUMNS=COLUMNS,
        num_warps=4,
    )
    return out
