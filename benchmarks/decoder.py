"""Time the quantised decoder and the vision encoder in Pixtral-12B's shape, on random weights.

    python benchmarks/decoder.py
    python benchmarks/decoder.py --layers 8 --prompt 2048 --vision-layers 0

A few layers are made and their time is scaled to the real number of them; the output head is timed by itself
and counted once. Weights differ from layer to layer, so that no cache holds them all. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pixedge.commands.peak_memory import peak_memory
from pixedge.config import DecoderConfig, ModelConfig
from pixedge.decoder import Decoder, DecoderLayer
from pixedge.kernels.attention import PAGE
from pixedge.kv_cache import PagedStep, PagePool
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.loading import DTYPES, choose_device
from pixedge.packing import QuantizedWeight
from pixedge.vision import VisionSession
from pixedge_export.encoder import VisionEncoder
from pixedge_export.synthetic import PIXTRAL_12B
from pixedge_export.vision import export_vision

GROUP_SIZE = 128
TINY = ModelConfig(
    replace(PIXTRAL_12B.decoder, dim=256, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=512, vocab_size=1024),
    replace(PIXTRAL_12B.vision, dim=128, n_layers=2, n_heads=2, ffn_dim=256, image_size=256),
)


def packed_linear(
    in_features: int, out_features: int, generator: torch.Generator, dtype: torch.dtype, device: torch.device
) -> Int4Linear:
    """Make a 4-bit linear of random weights that keep the size of what they multiply."""
    q = torch.randint(0, 16, (out_features, in_features), generator=generator, dtype=torch.uint8)
    scale = 1 / (4.6 * in_features**0.5)  # 4.6: standard deviation of q - 8
    scales = torch.full((out_features, in_features // GROUP_SIZE), scale).to(torch.bfloat16)
    return Int4Linear(QuantizedWeight(q, scales, GROUP_SIZE), dtype, device)


def random_decoder(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Build a decoder as ``pixedge.load`` does: 4-bit linears, 8-bit head; without its embeddings."""
    generator = torch.Generator().manual_seed(0)

    def linear(in_features: int, out_features: int) -> nn.Module:
        return packed_linear(in_features, out_features, generator, dtype, device)

    # Built with one token and no head: embeddings and a 16-bit head would only take memory.
    decoder = Decoder(replace(config, n_layers=1, vocab_size=1), linear, lambda i, o: nn.Identity())
    decoder.layers = nn.ModuleList(DecoderLayer(config, linear) for _ in range(config.n_layers))
    decoder.config = config
    decoder.to(device, dtype)
    head = torch.empty(config.vocab_size, config.dim, dtype=torch.bfloat16)
    head.normal_(0, config.dim**-0.5, generator=generator)
    decoder.lm_head = Int8Linear(head, dtype, device)
    return decoder.eval().requires_grad_(False)


def median_seconds(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Run a step once to warm up, then time it."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure_decoder(
    decoder: Decoder, config: DecoderConfig, prompt: int, context: int, repeats: int
) -> dict[str, float]:
    """Time one token behind `context` others, the head, and a prompt of `prompt` tokens; seconds each."""
    weight = decoder.norm.weight
    device, dtype = weight.device, weight.dtype
    pages = -(-max(context + 1, prompt) // PAGE)
    pool = PagePool.allocate(config, pages, dtype, device)
    for store in (pool.keys, pool.values):
        store.normal_()
    table = torch.arange(pages, dtype=torch.int32)[None]

    def run(x: Tensor, length: int) -> Tensor:
        start, count = (torch.tensor([number], dtype=torch.int32) for number in (length, len(x)))
        step = PagedStep(pool, table, start, count)
        out: Tensor = decoder(x, torch.arange(length, length + len(x), device=device), step)
        return out

    token = torch.randn(1, config.dim, device=device).to(dtype)
    tokens = torch.randn(prompt, config.dim, device=device).to(dtype)
    return {
        "token_layers": median_seconds(lambda: run(token, context), repeats, device),
        "head": median_seconds(lambda: decoder.lm_head(token), repeats, device),
        "prompt_layers": median_seconds(lambda: run(tokens, 0), max(1, repeats // 4), device),
    }


def measure_vision(
    config: ModelConfig, sides: list[int], repeats: int, device: torch.device
) -> dict[str, float]:
    """Time the ONNX encoder on square pictures of random weights, in seconds by side."""
    generator = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VisionEncoder(config).state_dict().items()}
    tensors = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator)
        tensors[name] = (values * fan_in**-0.5).half()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(tensors, folder / "vision.safetensors")
        del tensors
        export_vision(config, folder, "vision.safetensors")
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
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of the prompt (default 1024)")
    parser.add_argument("--context", type=int, default=1024, help="tokens before one (default 1024)")
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

    with torch.inference_mode():
        decoder = random_decoder(config, dtype, device)
        found = measure_decoder(decoder, config, args.prompt, args.context, args.repeats)
    del decoder
    share = whole.decoder.n_layers / args.layers
    token = found["token_layers"] * share + found["head"]
    prefill = found["prompt_layers"] * share + found["head"]
    rows = [
        (f"one token behind {args.context}, {args.layers} layers", found["token_layers"]),
        ("output head", found["head"]),
        (f"one token, {whole.decoder.n_layers} layers and head", token),
        (f"prompt of {args.prompt}, {args.layers} layers", found["prompt_layers"]),
        (f"prompt of {args.prompt}, {whole.decoder.n_layers} layers and head", prefill),
    ]
    vision_layers = whole.vision.n_layers if args.vision_layers is None else args.vision_layers
    pictures: dict[str, float] = {}
    if vision_layers:
        seen = ModelConfig(whole.decoder, replace(whole.vision, n_layers=vision_layers))
        sides = [side for side in args.sides if side <= whole.vision.image_size]
        pictures = measure_vision(seen, sides, max(1, args.repeats // 4), device)
        rows += [(f"picture of {s} x {s}, {vision_layers} encoder layers", t) for s, t in pictures.items()]
    for name, seconds in rows:
        print(f"{name:48} {1e3 * seconds:10.1f} ms")
    summary: dict[str, Any] = {
        "shape": "tiny" if args.tiny else "pixtral-12b",
        "device": str(device),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "layers": args.layers,
        "prompt": args.prompt,
        "context": args.context,
        "seconds": {name: round(value, 6) for name, value in found.items()},
        "token_seconds": round(token, 6),
        "tokens_per_second": round(1 / token, 3),
        "prefill_seconds": round(prefill, 6),
        "vision_layers": vision_layers,
        "picture_seconds": {side: round(value, 6) for side, value in pictures.items()},
        "peak_memory_bytes": peak_memory(),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
