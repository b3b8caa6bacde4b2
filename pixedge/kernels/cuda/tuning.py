"""Launch shapes by GPU architecture: a table, so that nothing is searched for at a start.

What a shape does to speed is a matter of the architecture; to results it does nothing but reorder sums. Torch
and triton are imported when a device is asked for, not before.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pixedge.kernels.cuda.layout import BLOCK_IN, MAX_PARTS, power_of_2

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Matmul:
    """How a product of few rows is cut up.

    outputs: output features a program computes; a power of two, 16 to 128. programs: programs wanted for each
    multiprocessor before the inputs stop being split. splits: the most parts that the inputs are split into.
    """

    outputs: int
    warps: int
    stages: int
    programs: int = 4
    splits: int = 16


@dataclass(frozen=True)
class Attention:
    """How attention over pages is cut up.

    keys: keys a program takes at a time, a multiple of 16. programs: programs wanted for each multiprocessor.
    parts: the fewest parts of a context while decoding, so that one long context among many is spread too.
    """

    keys: int
    warps: int
    stages: int
    programs: int = 2
    parts: int = 8


@dataclass(frozen=True)
class Architecture:
    """The launch shapes of one GPU generation; ``_wide`` is for 9 to 16 rows."""

    int4: Matmul
    int4_wide: Matmul
    int8: Matmul
    decoding: Attention
    prefill: Attention


AMPERE = Architecture(
    int4=Matmul(outputs=64, warps=4, stages=4),
    int4_wide=Matmul(outputs=64, warps=4, stages=4),
    int8=Matmul(outputs=64, warps=4, stages=3),
    decoding=Attention(keys=64, warps=4, stages=2),
    prefill=Attention(keys=32, warps=4, stages=2),
)
"""100 KB of shared memory a multiprocessor, 99 KB of it for one block: GeForce RTX 30, 40 and 50."""

HOPPER = Architecture(
    int4=Matmul(outputs=128, warps=4, stages=5),
    int4_wide=Matmul(outputs=128, warps=4, stages=4),
    int8=Matmul(outputs=64, warps=4, stages=4),
    decoding=Attention(keys=64, warps=4, stages=3),
    prefill=Attention(keys=32, warps=4, stages=3),
)

ARCHITECTURES = {
    (8, 0): AMPERE,
    (8, 6): AMPERE,
    (8, 9): AMPERE,
    (9, 0): HOPPER,
    (10, 0): HOPPER,
    (12, 0): AMPERE,
}
"""By compute capability; others get AMPERE's, which fit into the shared memory of all of them."""


@dataclass(frozen=True)
class Device:
    """What a launch needs to know of a device."""

    multiprocessors: int
    shapes: Architecture


INTERPRETED = Device(1, replace(AMPERE, decoding=replace(AMPERE.decoding, parts=1)))
"""Stands in for a GPU where the interpreter runs the kernels on CPU tensors, one program after the other."""


def device(of: "torch.device") -> Device:
    """Return the facts of a CUDA device, or those of the interpreter for the CPU."""
    if of.type != "cuda":
        return INTERPRETED
    return _cuda(of.index)


@functools.cache
def _cuda(index: int) -> Device:
    import torch

    facts = torch.cuda.get_device_properties(index)
    return of_capability(facts.multi_processor_count, (facts.major, facts.minor))


def of_capability(multiprocessors: int, capability: tuple[int, int]) -> Device:
    """Return the facts of a GPU by its number of multiprocessors and its compute capability."""
    return Device(multiprocessors, ARCHITECTURES.get(capability, AMPERE))


def splits(facts: Device, outputs: int, inputs: int, rows: int) -> int:
    """Return into how many parts a product splits its inputs, so that all multiprocessors have work."""
    shape = matmul(facts, rows)
    tiles = -(-outputs // shape.outputs)
    wanted = facts.multiprocessors * shape.programs
    # at least two blocks a split, or filling the pipeline takes longer than the work
    return max(1, min(wanted // tiles, shape.splits, -(-inputs // BLOCK_IN) // 2))


def matmul(facts: Device, rows: int) -> Matmul:
    """Return how a 4-bit product of ``rows`` rows is cut up."""
    return facts.shapes.int4 if rows <= 8 else facts.shapes.int4_wide


def parts(facts: Device, sequences: int, kv_heads: int) -> int:
    """Return into how many parts a context is cut, a power of two that keeps the device busy."""
    launch = facts.shapes.decoding
    wanted = -(-facts.multiprocessors * launch.programs // (sequences * kv_heads))
    return min(MAX_PARTS, max(launch.parts, power_of_2(wanted)))


def interpreted() -> bool:
    """Tell whether kernels run in triton's interpreter, which takes CPU tensors."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def on(of: "torch.device") -> AbstractContextManager[object]:
    """Make a CUDA device the thread's current one, on which triton launches; do nothing for the CPU."""
    if of.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(of)


def check_device(*tensors: "torch.Tensor | None") -> None:
    """Assert that all tensors are on one device on which kernels can run."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    assert len(devices) == 1, f"tensors on {', '.join(sorted(map(str, devices)))}"
    kind = devices.pop().type
    assert kind == ("cpu" if interpreted() else "cuda"), f"a kernel cannot run on tensors of {kind}"
