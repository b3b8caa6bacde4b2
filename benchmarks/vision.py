"""Time the vision encoder on the CPU beside transformers' in bfloat16, on the same weights.

    python benchmarks/vision.py                       # Pixtral-12B's encoder: 512x512 and 1024x1024
    python benchmarks/vision.py --tiny --sides 32 64

Both encode the same random pictures in turns, adapter included; times are medians, the ratio is the median
of the pairs' ratios. Weights have heavy tails, loud channels and norms with outliers. `cosine` is the least
over all patches to the float32 graph's embeddings. The split of ours: attention is that kernel timed alone,
linears are all else, norms and rotation being fused into them. The split of the peer's: what torch's profiler
says of one picture. Peak memory is that of a process that loads and encodes the largest picture once. Where
transformers is not installed, only ours is timed. The last line is JSON.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pixedge.config import ModelConfig
from pixedge.kernels.cpu.compiled import variant
from pixedge.kernels.vision import fast
from pixedge.known_shapes import PIXTRAL_12B
from pixedge.rope import rotary_2d
from pixedge.section import read_json
from pixedge.vision import FUSED_GRAPH, VisionSession
from pixedge_export.synthetic_encoder import SHARD, write_encoder

CPU = torch.device("cpu")
TINY = ModelConfig(
    dataclasses.replace(PIXTRAL_12B.decoder, dim=256),
    dataclasses.replace(PIXTRAL_12B.vision, dim=128, n_layers=2, n_heads=4, ffn_dim=256, image_size=128),
)
LINEARS = {"aten::mm", "aten::addmm", "aten::mkldnn_convolution", "aten::linear"}

Encode = Callable[[np.ndarray], Tensor]


def open_ours(folder: Path, config: ModelConfig) -> Encode:
    """Open the session that `pixedge run` opens."""
    return VisionSession(folder, config, CPU, torch.get_num_threads()).encode


def open_peer(folder: Path, config: ModelConfig) -> Encode:
    """Load the same weights into transformers' model in bfloat16, and an adapter behind it."""
    from transformers import PixtralVisionConfig, PixtralVisionModel

    eye = config.vision
    geometry = PixtralVisionConfig(
        hidden_size=eye.dim,
        intermediate_size=eye.ffn_dim,
        num_hidden_layers=eye.n_layers,
        num_attention_heads=eye.n_heads,
        num_channels=eye.n_channels,
        image_size=eye.image_size,
        patch_size=eye.patch_size,
        hidden_act="silu",
        rope_theta=eye.rope_theta,
        attn_implementation="sdpa",
    )
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / SHARD).items()}
    with torch.device("meta"):
        tower = PixtralVisionModel(geometry).to(torch.bfloat16)
    prefix = "vision_tower."
    tower.load_state_dict(
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)},
        assign=True,
    )
    # the rates of the rotary embedding are no weights: the model makes them itself
    tower.patch_positional_embedding = type(tower.patch_positional_embedding)(geometry)
    tower.eval()
    adapter = [f"multi_modal_projector.linear_{i}" for i in (1, 2)]
    linears = [(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in adapter]

    def encode(pixels: np.ndarray) -> Tensor:
        with torch.inference_mode():
            batch = torch.from_numpy(pixels)[None].bfloat16()
            features = tower(batch, image_sizes=torch.tensor([pixels.shape[1:]])).last_hidden_state[0]
            return functional.linear(
                functional.gelu(functional.linear(features, *linears[0])), *linears[1]
            ).float()

    assert isinstance(tower, nn.Module)
    return encode


OPEN = {"ours": open_ours, "transformers": open_peer}


def picture(side: int) -> np.ndarray:
    """Draw a picture, float32 [3, side, side]."""
    return np.random.default_rng(side).standard_normal((3, side, side), np.float32)


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Time a call; the first one is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def attention_seconds(config: ModelConfig, side: int, repeats: int) -> float:
    """Time the attention of all layers alone."""
    eye = config.vision
    rows = side // eye.patch_size
    q, k, v = torch.randn(3, rows * rows, eye.n_heads, eye.head_dim)
    cos, sin = rotary_2d(rows, rows, eye.head_dim, eye.rope_theta)
    return eye.n_layers * median_seconds(lambda: fast.attention(q, k, v, cos, sin), repeats)


def peer_split(encode: Encode, pixels: np.ndarray) -> dict[str, float]:
    """Sum torch's profile of one picture by linears, attention and the rest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        encode(pixels)
    seconds = {"linears": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profile.key_averages():
        attention = "attention" in event.key
        kind = "linears" if event.key in LINEARS else "attention" if attention else "rest"
        seconds[kind] += event.self_cpu_time_total / 1e6
    return {kind: round(value, 4) for kind, value in seconds.items()}


def compare(
    encoders: dict[str, Encode], config: ModelConfig, side: int, repeats: int, split: bool
) -> dict[str, Any]:
    """Encode a picture by all in turns."""
    pixels = picture(side)
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(pixels)
    for _ in range(repeats):
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode(pixels)
            times[name].append(time.perf_counter() - start)
    row: dict[str, Any] = {"side": side}
    row["seconds"] = {name: round(statistics.median(found), 4) for name, found in times.items()}
    if "transformers" in times:
        pairs = zip(times["ours"], times["transformers"], strict=True)
        row["times_as_fast"] = round(statistics.median(peer / own for own, peer in pairs), 3)
        row["transformers_split"] = peer_split(encoders["transformers"], pixels)
    if split:
        attention = attention_seconds(config, side, repeats)
        row["ours_split"] = {
            "linears": round(row["seconds"]["ours"] - attention, 4),
            "attention": round(attention, 4),
        }
    return row


def add_cosines(
    rows: list[dict[str, Any]], encoders: dict[str, Encode], folder: Path, config: ModelConfig
) -> None:
    """Add each encoder's least cosine to the float32 graph's embeddings over all patches of a picture."""
    exact = VisionSession(folder, config, CPU, exact=True).encode
    for row in rows:
        pixels = picture(row["side"])
        expected = exact(pixels)
        row["cosine"] = {
            name: round(float(functional.cosine_similarity(encode(pixels), expected).min()), 6)
            for name, encode in encoders.items()
        }


def peak_bytes(folder: Path, name: str, side: int) -> int:
    """Load and encode one picture in a process of its own; return its peak memory."""
    command = [sys.executable, __file__, "--peak-of", name, "--folder", str(folder), "--sides", str(side)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(output.split()[-1])


def print_peak(folder: Path, name: str, side: int) -> None:
    """Be that process."""
    config = ModelConfig.from_params(read_json(folder / "params.json"))
    OPEN[name](folder, config)(picture(side))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything on the encoder in `folder`; print the table."""
    config = TINY if args.tiny else PIXTRAL_12B
    sides = args.sides or [512, 1024]
    write_encoder(folder, config)
    names = [name for name in OPEN if name == "ours" or importlib.util.find_spec("transformers")]
    encoders = {name: OPEN[name](folder, config) for name in names}
    fused = (folder / FUSED_GRAPH).is_file() and fast.operators_file() is not None
    rows = [compare(encoders, config, side, args.repeats, fused) for side in sides]
    add_cosines(rows, encoders, folder, config)
    print(f"{'picture':>11} {'encoder':>13} {'seconds':>9} {'cosine':>9}  split")
    for row in rows:
        for name in names:
            split = " ".join(f"{kind} {value:.3f}" for kind, value in row.get(f"{name}_split", {}).items())
            size = f"{row['side']}x{row['side']}"
            print(f"{size:>11} {name:>13} {row['seconds'][name]:9.3f} {row['cosine'][name]:9.6f}  {split}")
        if "times_as_fast" in row:
            print(f"{'':>11} {row['times_as_fast']:.2f} times as fast")
    found: dict[str, Any] = {"kernels": variant() if fused else "ONNX Runtime, float32", "pictures": rows}
    if sys.platform == "linux":
        found["peak_bytes"] = {name: peak_bytes(folder, name, max(sides)) for name in names}
        for name, peak in found["peak_bytes"].items():
            print(f"peak memory of {name}: {peak / 1e9:.2f} GB")
    return found


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small encoder, to see that it runs")
    parser.add_argument("--sides", type=int, nargs="+", help="of the square pictures, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--peak-of", choices=sorted(OPEN), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak_of:
        print_peak(args.folder, args.peak_of, args.sides[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args)
    about = {"shape": "tiny" if args.tiny else "pixtral-12b", "threads": torch.get_num_threads()}
    print(json.dumps(about | found))


if __name__ == "__main__":
    main()
