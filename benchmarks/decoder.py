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
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pixedge.commands.peak_memory import peak_memory
from pixedge.config import DecoderConfig, ModelConfig
from pixedge.decoder import Decoder, DecoderLayer
from pixedge.kernels.cpu.compiled import aligned_empty, library, pointer, variant
from pixedge.kernels.cpu.fused_layer import fuse
from pixedge.kv_cache import PagedStep, PagePool
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.loading import DTYPES, choose_device
from pixedge.packing import GptqWeight
from pixedge.vision import VisionSession
from pixedge_export.synthetic import PIXTRAL_12B
from vision import write_encoder

GROUP_SIZE = 128
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


def random_decoder(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Build a decoder as ``pixedge.load`` does: 4-bit linears, 8-bit head; without its embeddings."""
    generator = torch.Generator().manual_seed(0)

    def linear(in_features: int, out_features: int) -> nn.Module:
        words = torch.empty(in_features // 8, out_features, dtype=torch.int32)
        words.random_(-(2**31), 2**31 - 1, generator=generator)
        # 4.6: standard deviation of the values, so that a product keeps the size of what it multiplies
        scale = torch.tensor(1 / (4.6 * in_features**0.5)).bfloat16().half()
        scales = scale.expand(in_features // GROUP_SIZE, out_features).contiguous()
        return Int4Linear(GptqWeight(words, scales, GROUP_SIZE), dtype, device)

    # Built with one token and no head: embeddings and a 16-bit head would only take memory.
    decoder = Decoder(replace(config, n_layers=1, vocab_size=1), linear, lambda i, o: nn.Identity())
    layers = [DecoderLayer(config, linear) for _ in range(config.n_layers)]
    decoder.layers = nn.ModuleList(layers)
    decoder.config = config
    for norm in decoder.parameters():  # weights keep their own types
        norm.data = norm.data.to(device, dtype)
    fuse(layers)
    head = torch.empty(config.vocab_size, config.dim, dtype=torch.bfloat16)
    head.normal_(0, config.dim**-0.5, generator=generator)
    decoder.lm_head = Int8Linear(head, dtype, device)
    return decoder.eval().requires_grad_(False)


def finish(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rested(device: torch.device) -> float:
    """Return the time, once torch's threads have stopped looking for more work after a product."""
    time.sleep(0.02)
    return finish(device)


def median_seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Run a step once to warm up, then time it."""
    times = []
    for _ in range(repeats + 1):
        start = finish(device)
        step()
        times.append(finish(device) - start)
    return statistics.median(times[1:])


class Limits:
    """What the machine can do at best: bytes read per second, and operations of a 16-bit product."""

    def __init__(self, device: torch.device, dtype: torch.dtype, size: int) -> None:
        """Take ``size`` bytes of memory, more than any cache holds, and two matrices."""
        self.device = device
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        if device.type == "cpu":
            self.memory = aligned_empty((size,), torch.uint8)  # in large pages, as the weights are
        self.memory.fill_(1)
        side = min(4096, int((size / 8) ** 0.5))
        self.left, self.right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        self.seconds: list[float] = []
        self.product_seconds: list[float] = []

    def measure(self, *, product: bool) -> None:
        """Time both once more; the product only where prompts are timed too."""
        opened = library() if self.device.type == "cpu" else None
        start = rested(self.device)
        if opened is None:
            self.memory.view(torch.int64).sum()
        else:
            opened.pixedge_read(pointer(self.memory), self.memory.nbytes)
        self.seconds.append(finish(self.device) - start)
        if product:
            start = finish(self.device)
            self.left @ self.right
            self.product_seconds.append(finish(self.device) - start)

    @property
    def bytes_per_second(self) -> float:
        """How fast memory is read."""
        return self.memory.nbytes / statistics.median(self.seconds)

    @property
    def operations_per_second(self) -> float:
        """Multiplications and additions of a product; 0 where none was timed."""
        if not self.product_seconds:
            return 0.0
        return 2 * len(self.left) ** 3 / statistics.median(self.product_seconds)


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
    decoder: Decoder, cases: list[Case], limits: Limits, repeats: int
) -> dict[Case, tuple[float, float]]:
    """Time the cases in turn, with the limits between them; seconds of the layers and of the head."""
    device = decoder.norm.weight.device
    times: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    steps = {case: make_step(decoder, case) for case in cases}
    for repeat in range(repeats + 1):
        limits.measure(product=any(case.tokens > 1 for case in cases))
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
        limits = Limits(device, dtype, 1 << 24 if args.tiny else 1 << 30)
        decoder = random_decoder(config, dtype, device)
        parts = [m for m in decoder.layers.modules() if isinstance(m, Int4Linear)]
        layer_bytes = sum(m.weight.nbytes + m.scales.nbytes for m in parts) / args.layers
        head_bytes = decoder.lm_head.weight.nbytes
        operations = 2 * sum(m.weight.numel() * 2 for m in parts) / args.layers
        found = measure_decoder(decoder, cases, limits, args.repeats)
    del decoder, parts
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
