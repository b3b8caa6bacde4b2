"""A kernel's result against its reference's, as one number."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from pixedge.doctor.finding import Finding, green, red

ADVICE = (
    "pip install --force-reinstall --no-deps --no-cache-dir pixedge; if it stays, report it with this line"
)


@dataclass(frozen=True)
class Proof:
    """A kernel to be tried.

    compare gives what the kernel and its reference computed, or None where this machine has no such kernel.
    bound: how far they may differ, as a share of the reference's norm.
    """

    name: str
    bound: float
    compare: Callable[[], tuple[Tensor, Tensor] | None]


def prove(proofs: list[Proof], where: str) -> Iterator[Finding]:
    """Try kernels; one finding for those that hold, and one for each that does not."""
    held: list[tuple[float, str]] = []
    for proof in proofs:
        name = f"{where} kernel: {proof.name}"
        try:
            pair = proof.compare()
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            yield red(name, f"fails ({text})", ADVICE)
            continue
        if pair is None:
            continue
        off = difference(*pair)
        if off <= proof.bound:  # not so where it is NaN
            held.append((off, proof.name))
        else:
            yield red(
                name, f"is off by {off:.1e} of its reference, where {proof.bound:.0e} is allowed", ADVICE
            )
    if held:
        off, furthest = max(held)
        detail = f"{len(held)} agree with their references; furthest off by {off:.1%}: {furthest}"
        yield green(f"{where} kernels proven", detail)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|, Euclidean norms in float64; both on one device."""
    assert found.shape == expected.shape, f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
    exact = expected.double()
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30))
