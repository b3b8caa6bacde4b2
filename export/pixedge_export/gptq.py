"""GPTQ: choose 4-bit weights so that a linear's output, not its weight, changes least.

For a linear y = W x and calibration inputs x, the error of replacing W by V is, over all outputs,
tr((W - V) H (W - V)^T) with H = 2/n sum x x^T, the layer's Hessian (Frantar et al. 2022,
arXiv 2210.17323). GPTQ quantises one input column after the other and lets the columns still to come
make up for the error so far.

The paper updates the remaining weights through the inverse of H. Chee et al. 2023 (arXiv 2307.13304,
theorem 6) show that the same numbers come from feeding the errors forward through a triangular factor
of H itself, which is what `_solve` does: H = L L^T, and with e the error of one row,

    e^T H e = sum_p L[p, p]^2 (e[p] + sum_{k > p} L[k, p] / L[p, p] e[k])^2

so, columns going from the last to the first, each term is smallest when column p is rounded from
w[p] + sum_{k > p} L[k, p] / L[p, p] e[k]. One Cholesky factor replaces an inverse and two factors:
a quarter of the work, and nothing is inverted.

What a linear's output should be need not be W x. Where x comes out of layers that are quantised already, it
is a little wrong, and a linear can make up for some of that (Li et al. 2025, arXiv 2504.02692). With
d the difference between the wanted output and W x, summed to C = 2/n sum d x^T,

    2/n sum ||W x + d - V x||^2 = tr((U - V) H (U - V)^T) + a constant,  where U = W + C H^-1,

so U could be quantised in place of W. That paper corrects column by column with those that are still to
come; solving for U corrects with all, and the factor of H is at hand. But C H^-1 is a regression, and with
few rows to a column it follows chance, so only a share of it is taken (see `_make_up`).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pixedge.errors import ExportError
from pixedge.packing import NIBBLES, ZERO_POINT, QuantizedWeight, dequantize
from pixedge_export.hessian import BLOCK, Shortfall

ScaleSearch = Literal["absmax", "uniform", "activation"]

LOWEST, HIGHEST = -ZERO_POINT, ZERO_POINT - 1
"""The range of q - 8."""

MIN_SCALE = 2.0**-14
"""The smallest normal float16. A bfloat16 has 8 significant bits against float16's 11, so from here up
float16 holds every bfloat16 exactly; below, some engines flush to zero. A group that would want a smaller
scale has no weight above 7.5 * 2**-14 = 0.00046."""

MAX_SCALE = 8160.0
"""The largest bfloat16 s for which 8 * s, the largest weight it can stand for, is finite in float16:
8 * 8160 = 65280, and the next bfloat16, 8192, would give 65536 > 65504."""

_CLIP_RATIOS = tuple(0.02 * k for k in range(20, 55))
"""Candidates for a group's scale, as shares of absmax / 7.5: 0.40 to 1.08. Above 1, because -8 reaches
further than 7.5."""


@dataclass(frozen=True)
class GptqResult:
    """A solved linear.

    target: the weight that was rounded, float32 [out, in]: the given one or, with a shortfall, one that makes
    up for a share of it, 0 to 1. damp_used: the damping that the Cholesky factorisation needed, as a share of
    H's mean diagonal.
    """

    quantized: QuantizedWeight
    target: Tensor
    damp_used: float
    share: float


def round_scales(scales: Tensor, name: str = "a linear") -> Tensor:
    """Round scales to values that are exact in bfloat16 and in float16, between MIN_SCALE and MAX_SCALE.

    Returns float32 of the same shape. A scale of 0 (a group of zeros) becomes MIN_SCALE, which changes
    nothing. Raises ExportError for a scale that is too large or not finite.
    """
    rounded = _exact(scales)
    largest = float(rounded.max()) if rounded.numel() else 0.0
    if not largest <= MAX_SCALE:  # also true for NaN
        raise ExportError(
            f"{name} needs a quantisation scale of {largest:g}, above the {MAX_SCALE:g} that float16 weights "
            "allow; check the checkpoint for a damaged weight."
        )
    return rounded


def search_scales(
    weight: Tensor, group_size: int, importance: Tensor | None = None, name: str = "a linear"
) -> Tensor:
    """Search each group's scale for the least squared rounding error.

    weight: [out, in]. importance: a weight per input column [in], at least 0, or None for all alike. The
    candidates are absmax / 7.5 times 0.40, 0.42 .. 1.08, each rounded by `round_scales` before it is tried.
    Returns float32 [out, in / group_size]. Raises ExportError as `round_scales` does.
    """
    in_features = weight.shape[1]
    if importance is None:
        importance = torch.ones(in_features, device=weight.device)
    mean = float(importance.mean()) or 1.0
    # Groups are judged one by one, so the small addition matters only where a whole group has no importance.
    cost = (importance / mean + 1e-6).view(-1, group_size, 1)  # [groups, group, 1]
    rows = max(1, 2**20 // in_features)  # about 4 MB at a time stay in the cache
    chunks = []
    for lo in range(0, weight.shape[0], rows):
        w = weight[lo : lo + rows].to(torch.float32).contiguous()  # it is read once for every candidate
        grouped = w.reshape(w.shape[0], -1, group_size)  # [rows, groups, group]
        base = grouped.abs().amax(-1) / 7.5
        best = round_scales(base, name)
        least = torch.full_like(best, math.inf)
        for ratio in _CLIP_RATIOS:
            scales = _exact(base * ratio).clamp_(max=MAX_SCALE)
            error = _levels(grouped, scales[..., None]).mul_(scales[..., None]).sub_(grouped).square_()
            total = torch.matmul(error.transpose(0, 1), cost)[..., 0].t()  # [rows, groups]
            better = total < least
            least = torch.where(better, total, least)
            best = torch.where(better, scales, best)
        chunks.append(best)
    return torch.cat(chunks)


def quantize_rtn(weight: Tensor, group_size: int, name: str = "a linear") -> QuantizedWeight:
    """Round to nearest: scale = absmax / 7.5 of each group, q = round(w / scale) + 8 within 0 .. 15.

    This is the usual full-range symmetric rule, 2 * absmax over 15 steps, with the scale rounded as by
    `round_scales`. weight: [out, in]. Raises ExportError for a weight that is not finite or does not fit
    the groups.
    """
    _check_weight(weight, group_size, name)
    grouped = weight.to(torch.float32).view(weight.shape[0], -1, group_size)
    scales = round_scales(grouped.abs().amax(-1) / 7.5, name)
    return _quantized(_levels(grouped, scales[..., None]).view(weight.shape), scales, group_size)


def quantize_gptq(
    weight: Tensor,
    hessian: Tensor,
    group_size: int,
    damp: float = 0.01,
    act_order: bool = True,
    block_size: int = 128,
    scale_search: ScaleSearch = "activation",
    polish: int = 1,
    shortfall: Shortfall | None = None,
    name: str = "a linear",
) -> GptqResult:
    """Quantise a weight to 4 bits under its Hessian.

    weight: [out, in]. hessian: [in, in] as HessianAccumulator gives it; its device is where the work is
    done, in float32. Neither is changed.
    damp: share of H's mean diagonal added to the diagonal; ten times more, up to 1, where Cholesky fails.
    act_order: solve the columns with the largest activations first. Groups stay i // group_size, since
    scales are fixed before solving.
    block_size: columns solved between two updates of all the remaining ones; a matter of speed only.
    scale_search: "absmax" takes absmax / 7.5, "uniform" searches for the least squared error, and
    "activation" weighs that error by H's diagonal.
    polish: how many times `_polish` goes over the solution.
    shortfall: what the outputs lack, for the same inputs as the Hessian's; it is taken. None where they
    should be W x.
    Returns the weight on the Hessian's device. Raises ExportError where a value is not finite, the weight
    does not fit the groups, a scale is too large, or H is not positive definite with any damping.
    """
    _check_weight(weight, group_size, name)
    in_features = weight.shape[1]
    assert hessian.shape == (in_features, in_features), (
        f"Hessian {list(hessian.shape)} for {in_features} inputs"
    )
    assert 0 < damp <= 1 and block_size > 0 and polish >= 0
    hessian = hessian.to(torch.float32)
    if not bool(torch.isfinite(hessian).all()):
        raise ExportError(f"The Hessian of {name} contains NaN or infinity; check the calibration data.")
    diagonal = hessian.diagonal()
    if act_order:
        first_to_last = torch.argsort(diagonal, descending=True, stable=True)
    else:
        first_to_last = torch.arange(in_features, device=hessian.device)
    order = first_to_last.flip(0)  # the solver goes from the last to the first
    factor, damp_used = _damped_cholesky(hessian, order, damp, name)

    # Everything below is [in, out], so that a column of the weight is one contiguous row.
    wt = weight.to(device=hessian.device, dtype=torch.float32).t()
    wt = wt.clone(memory_format=torch.contiguous_format)
    share = 0.0
    if shortfall is not None:
        share = _make_up(wt, shortfall, factor, order, damp_used * _mean_diagonal(hessian), name)
    if scale_search == "absmax":
        scales = round_scales(wt.view(-1, group_size, wt.shape[1]).abs().amax(1).t() / 7.5, name)
    else:
        importance = diagonal.clamp(min=0) if scale_search == "activation" else None
        scales = search_scales(wt.t(), group_size, importance, name)
    st = scales.t().contiguous()  # [groups, out]
    levels = _solve(wt, st, factor, order, group_size, block_size)
    del factor
    for _ in range(polish):
        _polish(wt, st, levels, hessian, damp_used * _mean_diagonal(hessian), group_size)
    quantized = _quantized(levels.t(), st.t().contiguous(), group_size)
    return GptqResult(quantized, wt.t(), damp_used, share)


def relative_output_error(weight: Tensor, quantized: QuantizedWeight, x: Tensor) -> float:
    """Compute ||x (W - V)^T|| / ||x W^T|| (Frobenius) for inputs x [rows, in]; 0 where nothing is lost."""
    w = weight.to(device=x.device, dtype=torch.float32)
    difference = w - dequantize(quantized, torch.float32).to(x.device)
    x = x.to(torch.float32)
    return _ratio(float((x @ difference.t()).norm()), float((x @ w.t()).norm()))


def relative_error_from_hessian(weight: Tensor, quantized: QuantizedWeight, hessian: Tensor) -> float:
    """Compute `relative_output_error` over the inputs that H was summed from, as a ratio of traces.

    sqrt(tr((W - V) H (W - V)^T) / tr(W H W^T)), because tr(A H A^T) = 2/n ||X A^T||^2.
    """
    h = hessian.to(torch.float32)
    wt = weight.to(device=h.device, dtype=torch.float32).t().contiguous()  # [in, out]
    whole = _quadratic_form(wt, h)
    lost = _quadratic_form(wt - dequantize(quantized, torch.float32).to(h.device).t(), h)
    return _ratio(math.sqrt(max(lost, 0.0)), math.sqrt(max(whole, 0.0)))


def _ratio(lost: float, whole: float) -> float:
    """Divide, taking nothing lost from nothing as no loss."""
    return lost / whole if whole > 0 else (0.0 if lost == 0 else math.inf)


def _quadratic_form(a: Tensor, h: Tensor) -> float:
    """Compute tr(a^T h a) for a [in, out] and a symmetric h, reading only h's upper blocks."""
    total = 0.0
    for lo in range(0, a.shape[0], BLOCK):
        hi = lo + BLOCK
        part = h[lo:hi, lo:hi] @ a[lo:hi]
        if hi < a.shape[0]:
            part.addmm_(h[lo:hi, hi:], a[hi:], alpha=2)
        total += float((part * a[lo:hi]).sum(dtype=torch.float64))
    return total


def _check_weight(weight: Tensor, group_size: int, name: str) -> None:
    """Raise ExportError where a weight can be neither quantised nor packed."""
    assert weight.dim() == 2, f"a linear's weight is [out, in], not {list(weight.shape)}"
    out_features, in_features = weight.shape
    if group_size <= 0 or in_features % group_size:
        raise ExportError(
            f"{name} has {in_features} inputs, which do not divide into groups of {group_size}; "
            "choose a group size that divides them."
        )
    if out_features % NIBBLES or group_size % NIBBLES:
        raise ExportError(
            f"{name} has {out_features} outputs in groups of {group_size} inputs, and the 4-bit layout takes "
            f"multiples of {NIBBLES} of both; leave this linear in 16 bits."
        )
    if not bool(torch.isfinite(weight).all()):
        raise ExportError(f"The weight of {name} contains NaN or infinity; check the checkpoint.")


def _exact(scales: Tensor) -> Tensor:
    """Round to bfloat16 and up to MIN_SCALE; NaN stays NaN."""
    return scales.to(torch.bfloat16).to(torch.float32).clamp_(min=MIN_SCALE)


def _levels(w: Tensor, scales: Tensor) -> Tensor:
    """Round w / scales to the nearest of -8 .. 7."""
    return (w / scales).round_().clamp_(LOWEST, HIGHEST)


def _quantized(levels: Tensor, scales: Tensor, group_size: int) -> QuantizedWeight:
    """Make a QuantizedWeight of levels -8 .. 7, [out, in]."""
    return QuantizedWeight((levels + ZERO_POINT).to(torch.uint8).contiguous(), scales, group_size)


def _mean_diagonal(hessian: Tensor) -> float:
    """Return the unit of damping: H's mean diagonal, or 1 where no input was ever above zero."""
    return float(hessian.diagonal().mean()) or 1.0


def _damped_cholesky(hessian: Tensor, order: Tensor, damp: float, name: str) -> tuple[Tensor, float]:
    """Factor H[order, order] + damp * mean diagonal; return the lower factor and the damping it took.

    A column whose input was always zero gets a diagonal of damping alone. It is tied to no other column
    and so is rounded to nearest.
    """
    unit = _mean_diagonal(hessian)
    while damp <= 1:
        permuted = torch.empty_like(hessian)  # a part at a time: an intermediate would be as large again
        for lo in range(0, len(order), BLOCK):
            permuted[lo : lo + BLOCK] = hessian[order[lo : lo + BLOCK]][:, order]
        permuted.diagonal().add_(damp * unit)
        # Factored in place. It is symmetric, so its transpose is the same in the order that LAPACK wants.
        factor, info = permuted.t(), torch.empty((), dtype=torch.int32, device=hessian.device)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if int(info) == 0 and bool(torch.isfinite(factor.diagonal()).all()):
            return factor, damp
        damp *= 10
    raise ExportError(
        f"The Hessian of {name} is not positive definite even with a damping of 1; "
        "check the calibration data, or export with --method rtn."
    )


def _make_up(
    wt: Tensor, shortfall: Shortfall, factor: Tensor, order: Tensor, damping: float, name: str
) -> float:
    """Add to wt, [in, out] in natural order, what makes up for a shortfall; return the share of it taken.

    The whole of it would be P = C M with M = (H + damping)^-1. On other inputs a share s of it lowers the
    squared error by 2 s tr(P K^T) - s^2 tr(P H P^T), K being the C of infinitely many inputs. The C of one
    half of the samples knows nothing of the chance in the other's, so the two halves' product is what the
    first trace is on average; with D half of their difference it is tr(C M C^T) - tr(D M D^T).
    """
    total, difference = shortfall.take()
    if not bool(torch.isfinite(total).all()):
        raise ExportError(f"What the 16-bit {name} gives contains NaN or infinity; check the checkpoint.")
    half = torch.linalg.solve_triangular(factor, difference.t()[order], upper=False)
    del difference
    chance = _squares(half)
    half = torch.linalg.solve_triangular(factor, total.t()[order], upper=False)
    del total
    whole = _squares(half)
    change = torch.linalg.solve_triangular(factor.t(), half, upper=True)
    del half
    spent = whole - damping * _squares(change)
    share = min(1.0, max(0.0, (whole - chance) / spent)) if spent > 0 else 0.0
    wt.index_add_(0, order, change, alpha=share)
    return share


def _squares(a: Tensor) -> float:
    """Sum the squares of all elements, a part at a time."""
    return sum(float(part.square().sum(dtype=torch.float64)) for part in torch.split(a, BLOCK))


def _solve(wt: Tensor, st: Tensor, factor: Tensor, order: Tensor, group_size: int, block_size: int) -> Tensor:
    """Round column after column, from the last of order to the first, each with the errors so far fed in.

    wt: [in, out]. st: scales [groups, out]. factor: [in, in], lower, in the order given. Returns levels
    -8 .. 7, [in, out], in natural order.
    """
    columns = order.tolist()
    diagonal = factor.diagonal()
    target = wt[order]  # [in, out] in solving order; gathers the errors of finished blocks
    errors = torch.empty_like(target)
    levels = torch.empty_like(wt)
    for hi in range(len(columns), 0, -block_size):
        lo = max(0, hi - block_size)
        inside = (factor[lo:hi, lo:hi] / diagonal[lo:hi]).t().contiguous()  # [column, column it hears from]
        for p in range(hi - 1, lo - 1, -1):
            column = columns[p]
            # Pulling the block's errors in reads half of what pushing each one out would read and write.
            wanted = torch.addmv(target[p], errors[p + 1 : hi].t(), inside[p - lo, p + 1 - lo :])
            scales = st[column // group_size]
            levels[column] = _levels(wanted, scales)
            errors[p] = wt[column] - levels[column] * scales
        if lo:
            target[:lo].addmm_((factor[lo:hi, :lo] / diagonal[:lo]).t(), errors[lo:hi])
    return levels


def _polish(wt: Tensor, st: Tensor, levels: Tensor, hessian: Tensor, damping: float, group_size: int) -> None:
    """Lower the error further, group by group, in place in st and levels, both [.., out].

    In each group first the scale is fitted again by least squares under H, all other weights being fixed
    (rounded to bfloat16, and kept only where it still helps), then each column in turn moves to its best
    level. No step can raise the damped error e^T (H + damping) e.
    """
    groups = st.shape[0]
    errors = wt - (levels.view(groups, group_size, -1) * st[:, None]).view_as(wt)  # [in, out]
    for g in range(groups):
        lo, hi = g * group_size, (g + 1) * group_size
        h = hessian[lo:hi, lo:hi].clone()
        h.diagonal().add_(damping)
        # The gradient of half the error: with one weight changed by d it becomes slope - h d.
        slope = torch.addmm(damping * errors[lo:hi], hessian[lo:hi], errors)  # [group, out]
        q = levels[lo:hi]
        hq = h @ q
        along, curvature = (q * slope).sum(0), (q * hq).sum(0)
        fitted = _exact(st[g] + along / curvature.clamp(min=1e-30)).clamp_(max=MAX_SCALE)
        step = fitted - st[g]
        helps = step * step * curvature < 2 * step * along
        step = torch.where(helps, step, 0.0)
        st[g] = torch.where(helps, fitted, st[g])
        slope -= step * hq

        scales = st[g]
        moved = torch.zeros_like(q)  # what each column of the group has moved by
        for k in range(group_size):
            here = torch.addmv(slope[k], moved[:k].t(), h[k, :k], alpha=-1)
            now = q[k] * scales
            q[k] = _levels(now + here / h[k, k], scales)
            moved[k] = q[k] * scales - now
        errors[lo:hi] = wt[lo:hi] - q * scales
