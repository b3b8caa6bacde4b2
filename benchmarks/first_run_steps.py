"""A trace of 20 steps of an answer, the time of each kernel in them, and memory planned beside taken.

    python benchmarks/first_run_steps.py FOLDER OUT

Writes OUT/trace.json.gz, for ui.perfetto.dev, which holds names of functions and sizes, no text and no file.
The last line is JSON. Without a GPU the steps of the CPU are traced.
"""

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import pixedge
from pixedge.model import Model
from pixedge.prompt import Prompt
from pixedge.sampling import Sampler, SamplingParams

STEPS, BEFORE = 20, 4


def trace(model: Model, out: Path) -> list[dict[str, Any]]:
    """Trace steps in the middle of an answer; return the kernels by the time they took."""
    engine, cuda = model.engine, torch.cuda.is_available()
    engine.stop_ids = frozenset()  # no token ends the answer
    params = SamplingParams(max_tokens=STEPS + BEFORE + 4)
    request = engine.submit(Prompt(tuple(range(20, 60)), (), 0), Sampler(params))
    for _ in range(BEFORE):
        engine.step()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as profiler:
        for _ in range(STEPS):
            engine.step()
        if cuda:
            torch.cuda.synchronize()
    engine.cancel(request)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        (out / "trace.json.gz").write_bytes(gzip.compress(file.read_bytes()))
    averages = profiler.key_averages()
    print(averages.table(sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total", row_limit=40))
    return [
        {"name": each.key[:120], "calls": each.count, "us": each.self_device_time_total}
        for each in averages
        if each.self_device_time_total
    ]


def memory(model: Model) -> dict[str, Any]:
    """Return what was planned and what is taken, in bytes."""
    plan = model.plan
    found: dict[str, Any] = {"planned": plan.total if plan else None, "limit": plan.limit if plan else None}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {
            "taken_of_the_card": total - free,
            "torch_reserved_peak": torch.cuda.max_memory_reserved(),
            "torch_allocated_peak": torch.cuda.max_memory_allocated(),
        }
    return found


def main(folder: Path, out: Path) -> None:
    """Load, trace and tell."""
    where = "auto"
    try:
        model = pixedge.load(folder)
    except pixedge.errors.PixedgeError as error:  # an encoder that cannot run on the card
        print(f"{error}; encoding on the CPU")
        model, where = pixedge.load(folder, vision_device="cpu"), "cpu"
    found: dict[str, Any] = {"vision_device": where, "loaded": memory(model)}
    found |= {"kernels": trace(model, out), "after": memory(model)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
