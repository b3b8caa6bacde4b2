"""What the plan is told that the GPU path takes is what it takes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import footprint, tuning
from pixedge.kernels.cuda.passes import Passes
from pixedge.kernels.cuda.step import StepWeights
from tests.gpu_engines import DEVICE, random_pair, random_weights, small_config
from tests.pixedge.kernels.cuda.pages_of_zeros import pages_of_zeros

ROOT = Path(__file__).parents[4]
RTX_4090 = tuning.of_capability(128, (8, 9))
H200 = tuning.of_capability(132, (9, 0))


def tensors_of(*holders: object) -> list[Tensor]:
    """Give every tensor that objects hold, at any depth, once for each piece of memory."""
    found: dict[int, Tensor] = {}

    def visit(each: object) -> None:
        if isinstance(each, Tensor):
            if each.device.type == DEVICE.type:
                memory = each.untyped_storage()
                found[memory.data_ptr()] = each
        elif isinstance(each, (list, tuple)):
            for part in each:
                visit(part)
        elif dataclasses.is_dataclass(each):
            for part in vars(each).values():
                visit(part)

    for holder in holders:
        visit(holder)
    return list(found.values())


def held(*holders: object) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(*holders))


def weight_tensors(weights: StepWeights) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(weights))


@pytest.mark.parametrize("facts", [tuning.INTERPRETED, RTX_4090, H200], ids=["interpreter", "4090", "H200"])
@pytest.mark.parametrize(("chunk", "requests", "max_pages"), [(40, 3, 5), (7, 1, 2), (130, 18, 9)])
def test_buffers(
    facts: tuning.Device, chunk: int, requests: int, max_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launch shapes of real cards: how often products and contexts are cut up decides about scratch."""
    config = small_config().decoder
    decoder, _ = random_weights(config, torch.float16)
    monkeypatch.setattr(tuning, "device", lambda of: facts)
    passes = Passes(
        decoder.weights,
        None,
        pages_of_zeros(config, 1, torch.float16),
        chunk=chunk,
        requests=requests,
        max_pages=max_pages,
        capture=lambda step: step,
    )
    chooser = passes._chooser
    # what is on the host where there is a device is beside it here, and no part of the plan for the device
    taken = held(passes.buffers, passes.graph.buffers, chooser._numbers, chooser._drawn, chooser._sorted)
    told = footprint.buffer_bytes(config, chunk=chunk, requests=requests, max_pages=max_pages, facts=facts)
    assert told == taken
    assert told > footprint.buffer_bytes(config, chunk=1, requests=1, max_pages=1, facts=facts)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("kind", ["own", "imported"])
def test_weights(kind: str, on_device: bool) -> None:
    engine = random_pair(kind=kind, on_device=on_device).gpu
    config, imported = engine.config.decoder, kind == "imported"
    told = footprint.weight_bytes(config, 32, embeddings=on_device, zeros=imported, ordered=imported)
    assert told == weight_tensors(engine.decoder.weights)  # type: ignore[union-attr]


def test_the_numbers_of_pixtral_12b() -> None:
    """Reckoned by hand once: 40 layers of 272.6 million weights at 4.125 bits, a head of a byte a weight."""
    from pixedge.known_shapes import PIXTRAL_12B

    config = PIXTRAL_12B.decoder
    linears = 40 * (5120 * (4096 + 2 * 1024) + 4096 * 5120 + 3 * 5120 * 14336) * 4.125 / 8
    head, norms = 131072 * (5120 + 2), 2 * 81 * 5120
    assert footprint.weight_bytes(config, 128, embeddings=False) == linears + head + norms
    table = 2 * 131072 * 5120
    assert footprint.weight_bytes(config, 128, embeddings=True) == linears + head + norms + table
    buffers = footprint.buffer_bytes(config, chunk=512, requests=16, max_pages=8192, facts=RTX_4090)
    # the largest: the weight that is unpacked for cuBLAS, 28,672 x 5,120 in 16 bits
    assert 2 * 28672 * 5120 < buffers < 450e6


def test_asking_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys\n"
        "from pixedge.kernels.cuda import footprint, tuning\n"
        "print([name for name in ('torch', 'triton') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert out.strip() == "[]"
