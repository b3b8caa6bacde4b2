"""What GPTQ knows of a linear's calibration inputs: sums over their rows, in float32."""

import torch
from torch import Tensor

from pixedge.errors import ExportError

BLOCK = 2048
"""Rows and columns of a large matrix that are worked on at a time."""


class HessianAccumulator:
    """H = 2/n sum x^T x over the calibration inputs of one linear (or several that share their input).

    What is kept is the plain float32 sum; the factor 2/n is applied once, on reading. Rescaling a running
    mean at every batch, as is often done, rounds the whole matrix each time. float32 is enough: a sum over
    a million tokens of activations up to 1e4 is 1e14, far from the limit of 3e38, and its relative error
    of about 1e-6 is far below the damping. Only the blocks on and above the diagonal are summed, which
    halves the work for wide layers.
    """

    def __init__(self, in_features: int, device: torch.device | str, name: str = "a linear") -> None:
        """Start from zero; name is the linear's, for the errors."""
        self.n = 0
        """Rows added so far."""
        self.name = name
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)  # [in, in]

    def add(self, x: Tensor, counts: Tensor | None = None) -> None:
        """Add inputs, [rows, in] of any floating type. Raises ExportError where one is not finite.

        counts: how much each row counts, [rows], 0 or more; 1 where not given.
        """
        size = self._sum.shape[0]
        assert x.dim() == 2 and x.shape[1] == size, f"expected [rows, {size}], got {list(x.shape)}"
        x = x.to(device=self._sum.device, dtype=torch.float32)
        if not bool(torch.isfinite(x).all()):
            raise ExportError(
                f"The calibration inputs of {self.name} contain NaN or infinity; check the checkpoint, or "
                "calibrate in float32."
            )
        for lo in range(0, size, BLOCK):
            hi = min(lo + BLOCK, size)
            part = x[:, lo:hi] if counts is None else x[:, lo:hi] * counts.to(x)[:, None]
            self._sum[lo:hi, lo:].addmm_(part.t(), x[:, lo:])
        self.n += x.shape[0]

    def hessian(self) -> Tensor:
        """Return H as float32 [in, in], symmetric; the sum becomes it, so nothing can be added any more.

        Raises ExportError if nothing was added.
        """
        if self.n == 0:
            raise ExportError(
                f"No calibration input reached {self.name}; give at least one calibration sample."
            )
        size = self._sum.shape[0]
        h = self._sum.mul_(2.0 / self.n)
        del self._sum
        for lo in range(0, size, BLOCK):
            hi = min(lo + BLOCK, size)
            h[hi:, lo:hi] = h[lo:hi, hi:].t()
            diagonal = h[lo:hi, lo:hi]
            diagonal.copy_((diagonal + diagonal.t()) / 2)
        return h


class Shortfall:
    """What a linear's outputs W x lack, summed against its inputs x: sum d x^T, W x + d being what is wanted.

    It is kept apart for two halves of the samples. What both agree on can be made up for; the rest is chance,
    and a weight that followed it would be worse on other inputs.
    """

    def __init__(self, rows: int, in_features: int, device: torch.device | str) -> None:
        """Start from zero, for d of ``rows`` columns."""
        self.n = 0
        """Rows added so far."""
        self._halves = [torch.zeros(rows, in_features, dtype=torch.float32, device=device) for _ in range(2)]
        self._samples = 0

    def add(self, d: Tensor, x: Tensor, counts: Tensor | None = None) -> None:
        """Add a sample: d [n, rows] and inputs [n, in] of any floating type; counts as for a Hessian."""
        assert d.dim() == x.dim() == 2 and len(d) == len(x), f"{list(d.shape)} beside {list(x.shape)}"
        # First, second, second, first: where two kinds of samples take turns, both halves get both.
        half = self._halves[(self._samples + 1) // 2 % 2]
        d = d.to(half) if counts is None else d.to(half) * counts.to(half)[:, None]
        half.addmm_(d.t(), x.to(half))
        self._samples += 1
        self.n += len(x)

    def through(self, weight: Tensor) -> "Shortfall":
        """Return the shortfall of the outputs, where this one is that of the inputs; weight is [out, in]."""
        out = Shortfall.__new__(Shortfall)
        out.n, out._samples = self.n, self._samples
        out._halves = [weight.to(half) @ half for half in self._halves]
        return out

    def take(self) -> tuple[Tensor, Tensor]:
        """Return 2/n times the halves' sum and their difference, float32 [rows, in], and forget both."""
        first, second = self._halves
        self._halves = []
        second.sub_(first).mul_(-2.0 / self.n)
        first.mul_(4.0 / self.n).sub_(second)
        return first, second
