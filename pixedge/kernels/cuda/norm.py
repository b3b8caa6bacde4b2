# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Adding a product to the residual stream, and RMSNorm of the sum, in one pass (arXiv 1910.07467)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.sums import load_sum

MAX_COLUMNS = 16384
"""The widest row: a program holds a whole one in registers."""


def add_norm_reference(
    residual: Tensor, partials: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return residual + partials.sum(0), and x / rms(x) * weight of it, both [rows, n].

    The sum is in residual's dtype; the norm is computed in float32 from the sum as it is stored, and rounded
    to weight's dtype before it meets the weight, as ``decoder.RMSNorm`` does.
    """
    total = residual if partials is None else (residual.float() + partials.float().sum(0)).to(residual.dtype)
    x = total.float()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return total, normed.to(weight.dtype) * weight


@triton.jit
def _add_norm(residual, partials, weight, out, rows, n, eps, SPLITS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    inside = column < n
    at = tl.program_id(0) * n + column
    x = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if SPLITS:
        x += load_sum(partials, at, inside, rows * n, SPLITS)
        stored = x.to(residual.dtype.element_ty)
        tl.store(residual + at, stored, mask=inside)
        x = stored.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / n + eps)
    normed = (x * scale).to(out.dtype.element_ty).to(tl.float32)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (normed * w).to(out.dtype.element_ty), mask=inside)


def add_norm(residual: Tensor, partials: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """Add partials [splits, rows, n] to residual [rows, n] in place; write its RMSNorm to out [rows, n].

    partials are float32, or of out's dtype; None leaves the residual as it is. weight [n] and out are of one
    16-bit type; residual is of it too, or float32.
    """
    tuning.check_device(residual, partials, weight, out)
    rows, n = residual.shape
    assert 1 <= n <= MAX_COLUMNS and weight.shape == (n,) and out.shape == (rows, n)
    assert residual.is_contiguous() and out.is_contiguous() and weight.dtype == out.dtype
    assert residual.dtype in (torch.float32, out.dtype), f"residual is {residual.dtype}, out {out.dtype}"
    splits = 0
    if partials is not None:
        splits = len(partials)
        assert partials.dtype in (torch.float32, out.dtype) and partials.is_contiguous()
        assert partials.shape == (splits, rows, n), f"partials are {tuple(partials.shape)}"
    columns = triton.next_power_of_2(n)
    _add_norm[(rows,)](
        residual,
        partials,
        weight,
        out,
        rows,
        n,
        eps,
        SPLITS=splits,
        COLUMNS=columns,
        num_warps=min(32, max(1, columns // 256)),
    )
    return out
