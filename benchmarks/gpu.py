"""Time the GPU path in Pixtral-12B's shape on random weights, under a cap of memory; one command, 8 minutes.

    python benchmarks/gpu.py                                              # on a GPU
    TRITON_INTERPRET=1 python benchmarks/gpu.py --tiny --device cpu       # anywhere: only that it runs

First the card's own limits: how fast it copies memory, and multiplies bfloat16 matrices of random numbers.
Then a folder of random weights is written (8.4 GB, below --scratch), loaded as `pixedge.load` does, and asked
through the engine. A share is of the limit that the bytes to move, or the operations to make, set by these
rates. A step's time is that of a whole step on the host, the chosen tokens read back; "graph" is what the
device alone takes. Peers: torch's own 4-bit product, and llama.cpp where PIXEDGE_LLAMA_PYTHON names a python
with llama-cpp-python built for CUDA. It needs torch, triton, numpy and safetensors, and for the encoder an
ONNX Runtime with the CUDA provider; where that is missing it encodes on the CPU, or else torch does, which is
told. What there is no time left for (--seconds) is left out and told. The last line is JSON.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_cases import Size, time_answers, time_decode, time_first_token, time_prompts
from gpu_clock import Bench
from gpu_encoder import open_encoder
from gpu_table import report
from int4_peers import time_llama, time_products
from pixedge.artifact import Artifact
from pixedge.budget import plan_load
from pixedge.byte_size import parse_bytes
from pixedge.config import ModelConfig
from pixedge.engine import Engine, EngineOptions
from pixedge.errors import UsageError
from pixedge.gpu_decoder import load_gpu_decoder
from pixedge.kernels.cuda import tuning
from pixedge.known_shapes import PIXTRAL_12B
from pixedge.loading import choose_device
from pixedge.memory import enforce
from pixedge.plan import Plan, Setup
from random_folder import write_decoder

DTYPE = torch.bfloat16
TINY = ModelConfig(
    dataclasses.replace(
        PIXTRAL_12B.decoder,
        dim=128,
        n_layers=1,
        n_heads=4,
        n_kv_heads=1,
        head_dim=32,
        ffn_dim=128,
        vocab_size=200,
        context=64,
    ),
    dataclasses.replace(PIXTRAL_12B.vision, dim=64, n_layers=1, n_heads=2, ffn_dim=128, image_size=64),
)


WHOLE = Size(
    PIXTRAL_12B, (512, 8192, 131072), (512, 4096), (256, 512, 768, 1024), (1, 4, 16), 512, 64, 20, 30
)
SMALL = Size(TINY, (8, 40), (3, 9), (32,), (1, 2), 8, 1, 1, 1)


def plan_of(size: Size, device: torch.device, limit: int | None) -> Plan:
    """Plan as ``pixedge.load`` does, for the longest context of one answer and the largest batch."""
    facts = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    setup = Setup(
        multiprocessors=facts.multi_processor_count if facts else 1,
        capability=(facts.major, facts.minor) if facts else (8, 0),
        prefill_chunk=size.chunk,
    )
    tokens = max(size.contexts[-1], size.config.decoder.context)
    return plan_load(size.config, setup, limit=limit, tokens=tokens, batch=max(size.batches))


def load(bench: Bench, size: Size, artifact: Artifact, plan: Plan) -> tuple[Any, dict[str, float]]:
    """Load the decoder from the folder that has just been written, and lies in the page cache."""
    start = bench.now()
    decoder = load_gpu_decoder(
        artifact, DTYPE, bench.device, host_embeddings=bool(plan.setup.host_embeddings)
    )
    return decoder, {"decoder": bench.now() - start}


def memory(device: torch.device, plan: Plan) -> dict[str, Any]:
    """Return what is taken of a GPU, and what was planned."""
    found: dict[str, Any] = {"planned": plan.total, "limit": plan.limit}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "taken": total - free,
            "torch_reserved": torch.cuda.max_memory_reserved(device),
            "torch_allocated": torch.cuda.max_memory_allocated(device),
        }
    return found


def describe(device: torch.device) -> dict[str, Any]:
    """Name the machine and its software."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return {"device": name, "torch": torch.__version__, "triton": triton.__version__}


@torch.inference_mode()
def measure(bench: Bench, size: Size, folder: Path, limit: int | None, tiny: bool) -> dict[str, Any]:
    """Measure everything."""
    device = bench.device
    found: dict[str, Any] = {"shape": "tiny" if tiny else "pixtral-12b", **describe(device)}
    found["limits"] = bench.limits(tiny)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    plan = plan_of(size, device, limit)
    enforce(plan, device)
    artifact = write_decoder(folder, size.config, device)
    decoder, found["load_seconds"] = load(bench, size, artifact, plan)
    vision, found_by = open_encoder(size.config, plan, device, folder)
    options = EngineOptions(
        kv_bits=8,
        cache_tokens=plan.workload.cache_tokens,
        max_requests=max(size.batches),
        prefill_chunk=size.chunk,
        shared_chunk=size.chunk,
    )
    start = bench.now()
    engine = Engine(size.config, decoder, vision, device, DTYPE, frozenset(), options)
    found["load_seconds"]["graphs"] = bench.now() - start
    for store in (engine.cache.pool.keys, engine.cache.pool.values):
        store.fill_(3)
    for scales in (engine.cache.pool.key_scales, engine.cache.pool.value_scales):
        if scales is not None:
            scales.fill_(0.01)
    pictures = []
    for side in size.sides:
        pixels = np.random.default_rng(side).standard_normal((3, side, side), dtype=np.float32)
        pictures.append({"side": side, "seconds": bench.median(lambda p=pixels: vision.encode(p), 3)})
    found["encoder"] = {"by": found_by, "pictures": pictures}
    found["decode"] = time_decode(bench, size, engine)
    found["answers"] = time_answers(bench, size, engine)
    found["prefill"] = time_prompts(bench, size, engine)
    found["first_token"] = time_first_token(bench, size, engine)
    found["memory"] = memory(device, plan)
    del engine, decoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    rows = (1,) if tiny else (1, 4, 16)
    found["products"] = []
    if bench.has_time("torch's products", 0 if tiny else 60):
        found["products"] = time_products(size.config.decoder, device, DTYPE, rows, bench.captured)
    left = bench.end - time.perf_counter()
    found["llama_cpp"] = time_llama(size.prompts, left) if bench.has_time("llama.cpp", 30) else None
    found["left_out"] = bench.left_out
    return found


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vram-limit", default="24GiB", help="the card to emulate (default 24GiB)")
    parser.add_argument("--seconds", type=float, default=460, help="time for all (default 460)")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the random weights")
    parser.add_argument("--tiny", action="store_true", help="a far smaller shape, to try this script")
    args = parser.parse_args()
    try:
        device = choose_device(args.device)
    except UsageError as error:
        sys.exit(f"{error}; try TRITON_INTERPRET=1 and --tiny --device cpu")
    if device.type == "cpu" and not (tuning.interpreted() and args.tiny):
        sys.exit("the kernels run on a CPU only in triton's interpreter: set TRITON_INTERPRET=1, give --tiny")
    bench = Bench(device, args.seconds)
    limit = parse_bytes(args.vram_limit, "--vram-limit") if device.type == "cuda" else None
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        found = measure(bench, SMALL if args.tiny else WHOLE, Path(folder), limit, args.tiny)
    report(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
