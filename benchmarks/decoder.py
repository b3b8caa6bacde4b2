"""Time the quantised decoder and the vision encoder in Pixtral-12B's shape, on random weights.

    python benchmarks/decoder.py
    python benchmarks/decoder.py --layers 8 --batches 1 --contexts 512 8192 131072 --prompts

A few layers are made and their time is scaled to the real number of them; the output head is timed by itself
and counted once. Weights differ from layer to layer, so that no cache holds them all. The machine's limits,
how fast it reads memory and multiplies matrices, are measured between the cases, in every round: other work
on the machine then slows both. Figures are medians. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixedge.commands.peak_memory import peak_memory
from pixedge.config import ModelConfig
from pixedge.decoder import Decoder
from pixedge.kernels.cpu.compiled import variant
from pixedge.kv_cache import PagedStep, PagePool
from pixedge.linear import Int4Linear
from pixedge.loading import DTYPES, choose_device
from pixedge.profile.limits import READ_BYTES, LimitTrial, finish, rested
from pixedge.profile.random_decoder import random_decoder
from pixedge.vision import VisionSession
from pixedge_export.synthetic import PIXTRAL_12B
from pixedge_export.synthetic_encoder import write_encoder

CHUNK = 512
"""Tokens of a prompt in one step, as the engine takes them."""
TINY = ModelConfig(
    replace(PIXTRAL_12B.decoder, dim=256, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=512, vocab_size=1024),
    replace(PIXTRAL_12B.vision, dim=128, n_layers=2, n_heads=2, ffn_dim=256, image_size=256),
)


@dataclass(frozen=True)
class Case:
    """A step to time: ``tokens`` of each of ``batch`` sequences behind ``context`` held ones."""

    batch: int
    context: int
    bits: int
    tokens: int = 1

    def __str__(self) -> str:
        """Describe the case in a table."""
        if self.tokens > 1:
            return f"prompt of {self.tokens}, {self.bits}-bit cache"
        return f"batch {self.batch}, context {self.context}, {self.bits}-bit cache"


def median_seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Run a step once to warm up, then time it."""
    times = []
    for _ in range(repeats + 1):
        start = finish(device)
        step()
        times.append(finish(device) - start)
    return statistics.median(times[1:])


def make_step(decoder: Decoder, case: Case) -> Callable[[], Tensor]:
    """Fill a cache with ``context`` tokens of each sequence and return a step that runs the case."""
    config, weight = decoder.config, decoder.norm.weight
    device, dtype = weight.device, weight.dtype
    length = case.context + case.tokens
    pages = -(-length // 16)
    pool = PagePool.allocate(config, case.batch * pages, dtype, device, bits=case.bits)
    for store in (pool.keys, pool.values):
        store.fill_(3)
    for scales in (pool.key_scales, pool.value_scales):
        if scales is not None:
            scales.fill_(0.01)
    # pages lie in any order, as after many requests
    tables = torch.randperm(case.batch * pages).view(case.batch, pages).int()
    x = torch.randn(case.batch * min(case.tokens, CHUNK), config.dim, device=device).to(dtype)

    def step() -> Tensor:
        for start in range(case.context, length, CHUNK):
            count = min(CHUNK, length - start)
            ends = torch.tensor([[start] * case.batch, [count] * case.batch], dtype=torch.int32)
            positions = torch.arange(start, start + count, device=device).repeat(case.batch)
            attend = PagedStep(pool, tables, ends[0].contiguous(), ends[1].contiguous())
            hidden: Tensor = decoder(x[: case.batch * count], positions, attend)
        return hidden

    return step


def measure_decoder(
    decoder: Decoder, cases: list[Case], limits: LimitTrial, repeats: int
) -> dict[Case, tuple[float, float]]:
    """Time the cases in turn, with the limits between them; seconds of the layers and of the head."""
    device = decoder.norm.weight.device
    times: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    steps = {case: make_step(decoder, case) for case in cases}
    for repeat in range(repeats + 1):
        limits.measure()
        for case, step in steps.items():
            start = rested(device)
            hidden = step()
            middle = finish(device)
            decoder.lm_head(hidden[-case.batch :])
            if repeat:  # the first round warms up
                times[case].append((middle - start, finish(device) - middle))
    return {
        case: (statistics.median(t for t, _ in found), statistics.median(t for _, t in found))
        for case, found in times.items()
    }


def measure_vision(
    config: ModelConfig, sides: list[int], repeats: int, device: torch.device
) -> dict[str, float]:
    """Time the ONNX encoder on square pictures of random weights, in seconds by side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_encoder(folder, config)
        session = VisionSession(folder, config, device)
        times = {}
        for side in sides:
            pixels = np.random.default_rng(0).standard_normal((3, side, side), dtype=np.float32)
            times[str(side)] = median_seconds(partial(session.encode, pixels), repeats, device)
    return times


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="decoder layers to make (default 4)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="at context 512")
    parser.add_argument("--contexts", type=int, nargs="*", default=[512, 8192], help="for one sequence")
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048], help="tokens of prompts")
    parser.add_argument("--bits", type=int, nargs="+", choices=[8, 16], default=[8, 16], help="of the cache")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--vision-layers", type=int, default=None, help="encoder layers; 0 leaves it out")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024], help="of pictures, in pixels")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tiny", action="store_true", help="a far smaller shape, to try this script")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, dtype = choose_device(args.device), DTYPES[args.dtype]
    whole = TINY if args.tiny else PIXTRAL_12B
    config = replace(whole.decoder, n_layers=args.layers)
    cases = [Case(1, context, bits) for context in args.contexts for bits in args.bits]
    cases += [Case(batch, 512, args.bits[0]) for batch in args.batches]
    cases += [Case(1, 0, args.bits[0], tokens) for tokens in args.prompts]
    cases = list(dict.fromkeys(cases))

    with torch.inference_mode():
        trial = LimitTrial(device, dtype, 1 << 24 if args.tiny else READ_BYTES)
        decoder = random_decoder(config, dtype, device)
        parts = [m for m in decoder.layers.modules() if isinstance(m, Int4Linear)]
        layer_bytes = sum(m.weight.nbytes + m.scales.nbytes for m in parts) / args.layers
        head_bytes = decoder.lm_head.weight.nbytes
        operations = 2 * sum(m.weight.numel() * 2 for m in parts) / args.layers
        found = measure_decoder(decoder, cases, trial, args.repeats)
        limits = trial.limits
    del decoder, parts, trial
    depth, rows = whole.decoder.n_layers, []
    read_limit = (depth * layer_bytes + head_bytes) / limits.bytes_per_second
    speed = limits.bytes_per_second / 1e9
    print(f"memory is read at {speed:.1f} GB/s: no token before {1e3 * read_limit:.1f} ms")
    print(f"products of {args.dtype} run at {limits.operations_per_second / 1e9:.0f} GFLOP/s")
    print(f"{args.layers} layers timed; {depth} and the head reckoned:")
    for case, (layers, head) in found.items():
        seconds = layers * depth / args.layers + head
        tokens = case.batch * case.tokens
        if case.tokens == 1:
            share = read_limit / seconds
        else:
            share = operations * depth * tokens / limits.operations_per_second / seconds
        print(
            f"{case!s:44} {1e3 * layers / args.layers:8.2f} ms a layer {1e3 * head:7.1f} ms head "
            f"{1e3 * seconds:9.1f} ms {tokens / seconds:8.2f} tokens/s  {100 * share:3.0f}% of the limit"
        )
        rows.append(
            asdict(case)
            | {
                "layers_seconds": round(layers, 6),
                "head_seconds": round(head, 6),
                "seconds": round(seconds, 6),
            }
            | {"tokens_per_second": round(tokens / seconds, 3), "share_of_limit": round(share, 3)}
        )
    vision_layers = whole.vision.n_layers if args.vision_layers is None else args.vision_layers
    pictures: dict[str, float] = {}
    if vision_layers:
        seen = ModelConfig(whole.decoder, replace(whole.vision, n_layers=vision_layers))
        sides = [side for side in args.sides if side <= whole.vision.image_size]
        pictures = measure_vision(seen, sides, max(1, args.repeats // 4), device)
    for side, seconds in pictures.items():
        print(f"picture of {side} x {side}, {vision_layers} encoder layers {1e3 * seconds:10.1f} ms")
    summary = {
        "shape": "tiny" if args.tiny else "pixtral-12b",
        "device": str(device),
        "dtype": args.dtype,
        "kernels": variant() if device.type == "cpu" else device.type,
        "threads": torch.get_num_threads(),
        "layers": args.layers,
        "whole_layers": depth,
        "read_bytes_per_second": round(limits.bytes_per_second),
        "product_operations_per_second": round(limits.operations_per_second),
        "bytes_per_token": round(depth * layer_bytes + head_bytes),
        "cases": rows,
        "vision_layers": vision_layers,
        "picture_seconds": {side: round(value, 6) for side, value in pictures.items()},
        "peak_memory_bytes": peak_memory(),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
