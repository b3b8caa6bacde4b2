"""Time the 4-bit solver beside GPTQModel's on the same inputs, and compare what they lose on others.

    python benchmarks/solver.py
    python benchmarks/solver.py --full --repeats 1        # the widths of Pixtral-12B

Both sum the same Hessian from the same calibration rows and solve the same weight, in turns; times are
medians. The processor's time, of all threads together, is given too: on a busy machine it says more. The
error is that of the outputs, on rows that neither has seen. Inputs are correlated and have loud
channels, weights have heavy tails. GPTQModel runs with its default settings; where it is not installed, only
ours is timed. The last line is JSON.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pixedge.commands.peak_memory import peak_memory
from pixedge.packing import dequantize
from pixedge_export.gptq import quantize_rtn
from pixedge_export.hessian import HessianAccumulator
from pixedge_export.layers import Recipe, solve

SMALL = ((512, 256),)
FULL = ((14336, 5120), (5120, 14336))
"""Outputs and inputs of gate_proj and down_proj."""

HELD_OUT = 2048
BATCH = 512
"""Rows that are added to a Hessian at a time, as a sample of 512 tokens is."""

Solver = Callable[[Tensor, Tensor], tuple[float, float, Tensor]]
"""From a weight [out, in] and rows [rows, in] to seconds for the Hessian, seconds to solve, and a weight."""


def draw_inputs(rows: int, in_features: int, seed: int) -> Tensor:
    """Draw activations [rows, in]: 64 directions shared by all channels, noise, and a few loud channels."""
    shape = torch.Generator().manual_seed(1)  # the distribution; the seed draws the rows
    directions = torch.randn(64, in_features, generator=shape)
    directions *= torch.arange(1, 65).float().pow(-0.5)[:, None]
    loudness = torch.exp(0.5 * torch.randn(in_features, generator=shape))
    loudness[torch.randperm(in_features, generator=shape)[: max(1, in_features // 250)]] *= 20
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 64, generator=generator) @ directions
    return x.add_(torch.randn(rows, in_features, generator=generator), alpha=0.7).mul_(loudness)


def draw_weight(out_features: int, in_features: int) -> Tensor:
    """Draw a weight [out, in] whose tails are heavier than a normal distribution's."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(out_features, in_features, generator=generator).mul_(0.02)
    return weight.mul_(torch.randn(out_features, in_features, generator=generator).mul_(0.4).exp_())


def ours(weight: Tensor, x: Tensor) -> tuple[float, float, Tensor]:
    """Solve as an export does."""
    start = time.perf_counter()
    accumulator = HessianAccumulator(x.shape[1], x.device)
    for rows in x.split(BATCH):
        accumulator.add(rows)
    hessian = accumulator.hessian()
    summed = time.perf_counter()
    quantized = solve(weight, hessian, Recipe()).quantized
    return summed - start, time.perf_counter() - summed, dequantize(quantized, torch.float32)


def gptqmodel(weight: Tensor, x: Tensor) -> tuple[float, float, Tensor]:
    """Solve as GPTQModel does by default, in groups of the same size."""
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    task = GPTQ(linear, QuantizeConfig(bits=4, group_size=Recipe().group_size))
    task.quantizer.configure(perchannel=True)
    start = time.perf_counter()
    for rows in x.split(BATCH):
        task.add_batch(rows[None], None)
    task.finalize_hessian()
    summed = time.perf_counter()
    solved: Tensor = task.quantize()[0]
    return summed - start, time.perf_counter() - summed, solved.float()


def error(weight: Tensor, solved: Tensor, x: Tensor) -> float:
    """Compute ||x (W - V)^T|| / ||x W^T||."""
    return float((x @ (weight - solved).t()).norm() / (x @ weight.t()).norm())


def compare(out_features: int, in_features: int, rows: int, repeats: int, solvers: dict[str, Solver]) -> Any:
    """Run every solver in turns on one weight; return medians and errors."""
    weight = draw_weight(out_features, in_features)
    x, unseen = draw_inputs(rows, in_features, 3), draw_inputs(HELD_OUT, in_features, 4)
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in solvers}
    errors: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in solvers.items():
            start = time.process_time()
            hessian_seconds, seconds, solved = run(weight, x)
            times[name].append((hessian_seconds, seconds, time.process_time() - start))
            errors[name] = error(weight, solved, unseen)
            del solved
    nearest = dequantize(quantize_rtn(weight, Recipe().group_size), torch.float32)
    row: dict[str, Any] = {"out": out_features, "in": in_features, "rows": rows}
    row["rtn_error"] = round(error(weight, nearest, unseen), 5)
    for name, measured in times.items():
        hessian_seconds, seconds, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        row[name] = {
            "hessian_seconds": round(hessian_seconds, 4),
            "solve_seconds": round(seconds, 4),
            "cpu_seconds": round(cpu, 4),
            "error": round(errors[name], 5),
        }
    if "gptqmodel" in row:
        own, other = row["ours"], row["gptqmodel"]
        stages = ("hessian_seconds", "solve_seconds")
        row["time_ratio"] = round(sum(own[s] for s in stages) / sum(other[s] for s in stages), 3)
        row["cpu_ratio"] = round(own["cpu_seconds"] / other["cpu_seconds"], 3)
        row["error_ratio"] = round(own["error"] / other["error"], 3)
    return row


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the widths of Pixtral-12B, after the small one")
    parser.add_argument("--rows", type=int, default=8192, help="calibration rows (default 8192)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    solvers: dict[str, Solver] = {"ours": ours}
    if importlib.util.find_spec("gptqmodel") is None:
        print("GPTQModel is not installed, so only ours is timed")
    else:
        solvers["gptqmodel"] = gptqmodel
    rows = []
    with torch.inference_mode():
        compare(64, 128, 256, 1, solvers)  # so that nothing is imported or built while the clock runs
        print(f"{args.rows} calibration rows, {HELD_OUT} others, {torch.get_num_threads()} threads")
        print(
            f"{'outputs x inputs':18}{'solver':12}{'Hessian':>12}{'solve':>12}{'processor':>12}{'error':>12}"
        )
        for out_features, in_features in SMALL + (FULL if args.full else ()):
            row = compare(out_features, in_features, args.rows, args.repeats, solvers)
            rows.append(row)
            label = f"{out_features} x {in_features}"
            print(f"{label:18}{'nearest':12}{'':36}{row['rtn_error']:12.5f}")
            for name in solvers:
                found = row[name]
                parts = ("hessian_seconds", "solve_seconds", "cpu_seconds")
                seconds = "".join(f"{found[part]:10.2f} s" for part in parts)
                print(f"{label:18}{name:12}{seconds}{found['error']:12.5f}", flush=True)
            if "time_ratio" in row:
                parts = ("time_ratio", "cpu_ratio", "error_ratio")
                time_ratio, cpu_ratio, error_ratio = (f"{row[part]:.2f}" for part in parts)
                ratios = f"time {time_ratio}, processor {cpu_ratio}, error {error_ratio}"
                print(f"{label:18}ours over GPTQModel: {ratios}", flush=True)
    summary = {"threads": torch.get_num_threads(), "sizes": rows, "peak_memory_bytes": peak_memory()}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
