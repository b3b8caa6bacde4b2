"""What an export will take of this machine, told before it begins: memory, disk and time.

Memory is the sum of what is alive at the worst moment of each phase. Time is the number of multiplications
over what this machine does of them in a second, times what that took of each phase on the machine in
docs/performance.md.
"""

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.errors import CapacityError
from pixedge.terminal import duration, size
from pixedge_export.activations import StreamLengths
from pixedge_export.layers import ERROR_ROWS, Recipe
from pixedge_export.vision import parity_grids
from pixedge_export.writer import estimate_bytes

GB = 10**9
_PROGRAM = 0.65 * GB
"""Python, torch, ONNX Runtime and the tokenizer, before anything is read."""
_CUDA_CONTEXT = 0.6 * GB
_LAYERS, _HEAD, _VISION = 1.6, 3.5, 2.7
"""What a phase takes over the bare time of its products: searching scales, widening, reading, writing."""
_ROWS = 1024
"""Side of the matrices by which the machine's speed is measured."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of memory, of the GPU's (0 without one) and of disk, and seconds."""

    ram: float
    gpu: float
    disk: float
    seconds: float

    def check(self, folder: Path, device: torch.device) -> str:
        """Say what will be taken of what is there; CapacityError, in the same words, where it is too little.

        folder: where all is written; what an unfinished export has left there is taken already.
        """
        there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        free = {"memory": free_ram(), "disk": shutil.disk_usage(folder).free + there}
        wanted = {"memory": self.ram, "disk": self.disk}
        if device.type == "cuda":
            free["GPU memory"], wanted["GPU memory"] = torch.cuda.mem_get_info(device)[0], self.gpu
        parts = [
            f"{size(round(wanted[name]))} of {name}" + ("" if have is None else f" ({size(have)} free)")
            for name, have in free.items()
        ]
        told = f"{', '.join(parts)} and {duration(self.seconds)}"
        short = [name for name, have in free.items() if have is not None and have < wanted[name]]
        if short:
            raise CapacityError(
                f"the export takes about {told}, so the {' and the '.join(short)} will not do; free some, "
                "use fewer or smaller samples, or try all the same with --force"
            )
        return f"takes about {told}"


def estimate(
    config: ModelConfig,
    recipe: Recipe,
    lengths: StreamLengths,
    pixels: int,
    device: torch.device,
    done: int = 0,
) -> Estimate:
    """Estimate an export whose first ``done`` layers are finished; pixels: of all samples' pictures."""
    decoder, vision = config.decoder, config.vision
    on_gpu = device.type == "cuda"
    layer = _layer_weights(decoder)
    widest = max(decoder.dim, decoder.ffn_dim, decoder.n_heads * decoder.head_dim)
    longest = max((*lengths.calibration, *lengths.held_out))
    rows = min(ERROR_ROWS, sum(lengths.held_out))
    activations = 4 * longest * (3 * decoder.dim + 3 * decoder.ffn_dim) + 4 * rows * widest
    hessian = 4 * widest**2 if recipe.method == "gptq" else 0
    largest = decoder.dim * max(decoder.ffn_dim, decoder.n_heads * decoder.head_dim)
    # one layer in float32; the Hessian and its factor; a weight, its target, its errors and its levels
    layers = 4 * layer + 2 * hessian + 5 * 4 * largest + activations + layer
    patches = (vision.image_size // vision.patch_size) ** 2
    encoder = vision.n_layers * (4 * vision.dim**2 + 3 * vision.dim * vision.ffn_dim)
    encoder += decoder.dim * (vision.dim + decoder.dim)
    scratch = 4 * patches * (8 * vision.dim + 3 * vision.ffn_dim + 2 * decoder.dim)
    seen = 2 * 4 * encoder + 2 * scratch + 4 * 3 * pixels  # in torch and in ONNX Runtime
    table = decoder.vocab_size * decoder.dim
    heads = (2 + 1) * table + 3 * 4 * 256 * decoder.vocab_size + 4 * 8192 * decoder.dim
    on_host = [seen, 2 * table + 4 * 3 * pixels, 2 * table + (0 if on_gpu else heads)]
    ram = _PROGRAM + max(*on_host, 2 * layer + layer if on_gpu else layers)
    gpu = _CUDA_CONTEXT + max(layers, heads, 4 * encoder + scratch) if on_gpu else 0.0
    pictures = sum(rows * columns for rows, columns in parity_grids(vision))
    work = (
        _LAYERS * _products(config, recipe, lengths, done)
        + _HEAD * 3 * sum(lengths.held_out) * table
        + _VISION * (2 * pictures + pixels // vision.patch_size**2) * encoder
    )
    seconds = work / _products_a_second(device)
    return Estimate(ram, gpu, estimate_bytes(config, recipe) + lengths.nbytes, seconds)


def free_ram() -> int | None:
    """Return the bytes of memory that this process may still take; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return None


def _layer_weights(d: DecoderConfig) -> int:
    return d.dim * d.head_dim * (2 * d.n_heads + 2 * d.n_kv_heads) + 3 * d.dim * d.ffn_dim


def _products(config: ModelConfig, recipe: Recipe, lengths: StreamLengths, done: int) -> float:
    """Count multiplications of float32 matrices, the layers' alone."""
    d = config.decoder
    attention = d.dim * d.head_dim * (2 * d.n_heads + 2 * d.n_kv_heads)
    layer = _layer_weights(d)
    # up to a stage's input and to the end: attention four times, gate and up twice, down once
    passes = 4 * attention + 2 * 2 * d.dim * d.ffn_dim + d.dim * d.ffn_dim
    held_out = sum(lengths.held_out) * (2 * layer + passes)
    work: float = held_out + 2 * min(ERROR_ROWS, sum(lengths.held_out)) * 2 * layer
    if recipe.method == "gptq":
        inputs = (d.dim, d.n_heads * d.head_dim, d.dim, d.ffn_dim)
        outputs = ((d.n_heads + 2 * d.n_kv_heads) * d.head_dim, d.dim, 2 * d.ffn_dim, d.dim)
        calibration = sum(lengths.calibration)
        work += calibration * passes
        for n_in, n_out in zip(inputs, outputs, strict=True):
            work += calibration * n_in**2 / 2 + n_in**3 / 6 * (3 if n_out > n_in else 1)
            work += 3 * n_out * n_in**2  # solving, polishing, and the error
        if recipe.catch_up:
            work += calibration * (layer + attention + d.dim * (inputs[1] + inputs[3]))
            for n_in, n_out in zip(inputs, outputs, strict=True):
                work += calibration * n_in * d.dim + 3 * n_out * n_in**2 / 2
                work += 2 * n_out * n_in**2 if n_in == d.dim else 0
    return work * (d.n_layers - done)


def _products_a_second(device: torch.device) -> float:
    """Measure how many multiplications this machine does in a second, in about a tenth of one."""
    a = torch.rand(_ROWS, _ROWS, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading it waits for the GPU
        best = min(best, time.perf_counter() - start)
    return _ROWS**3 / best
