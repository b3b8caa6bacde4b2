"""The decoder's products beside torch's own 4-bit product for CUDA, and llama.cpp where there is one."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pixedge.config import DecoderConfig
from pixedge.kernels.cuda import footprint, int4
from pixedge.kernels.cuda.int4_weight import Int4Weight
from pixedge.packing import GptqWeight

BEYOND_CACHE = 400 << 20
"""Bytes of weights to go round, several times the largest L2 cache."""
LLAMA = "PIXEDGE_LLAMA_PYTHON"
"""Names a python that has llama-cpp-python, built for CUDA."""

Timer = Callable[[Sequence[Callable[[], object]]], float]
"""Returns the seconds of one of the calls, made in turn."""


def time_products(
    config: DecoderConfig, device: torch.device, dtype: torch.dtype, rows: Sequence[int], timer: Timer
) -> list[dict[str, Any]]:
    """Time each of a layer's products at some numbers of rows, on the same words in both layouts."""
    found = []
    for name, (outputs, inputs) in footprint.products(config).items():
        moved = outputs * inputs // 2
        copies = 1 if device.type == "cpu" else max(2, min(32, BEYOND_CACHE // moved))
        scales = torch.full((inputs // 128, outputs), 0.01, dtype=torch.float16, device=device)
        ours, theirs = [], []
        reason = None if device.type == "cuda" else "torch's product needs a GPU"
        for _ in range(copies):
            words = torch.empty(inputs // 8, outputs, dtype=torch.int32, device=device)
            words.random_(-(2**31), 2**31 - 1)
            ours.append(Int4Weight.repack([GptqWeight(words, scales, 128)], device))
            if reason is not None:
                continue
            try:
                pairs = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
                theirs.append(torch.ops.aten._convert_weight_to_int4pack(pairs, 8))
            except (RuntimeError, NotImplementedError) as error:
                reason = str(error).splitlines()[0]
        shared = torch.stack([scales.t(), torch.zeros_like(scales.t())], -1).to(torch.bfloat16)
        shared = shared.transpose(0, 1).contiguous()  # [groups, out, 2]
        for count in rows:
            x = torch.randn(count, inputs, device=device).to(dtype)
            splits = int4.splits_for(ours[0], count)
            out = torch.empty(splits, count, outputs, dtype=torch.float32, device=device)
            row: dict[str, Any] = {"product": name, "rows": count, "bytes": moved}
            row["seconds"] = timer([partial(int4.few_rows, x, weight, out, splits) for weight in ours])
            row["torch_seconds"] = None
            if reason is None:
                multiply = torch.ops.aten._weight_int4pack_mm
                try:
                    calls = [partial(multiply, x.bfloat16(), weight, 128, shared) for weight in theirs]
                    row["torch_seconds"] = timer(calls)
                except (RuntimeError, NotImplementedError) as error:
                    reason = str(error).splitlines()[0]
            if row["torch_seconds"] is None:
                row["why"] = reason
            found.append(row)
    return found


def time_llama(prompts: Sequence[int], seconds: float) -> dict[str, Any]:
    """Run llama.cpp's benchmark in its own environment; tell why where there is none."""
    python = os.environ.get(LLAMA)
    if not python:
        return {"why": f"{LLAMA} names no python with llama-cpp-python built for CUDA"}
    script = Path(__file__).with_name("peer_llama_cpp.py")
    command = [python, str(script), "--gpu", "--layers", "2", "6", "--prompts", *map(str, prompts)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return {"why": f"it took longer than the {seconds:.0f} s that were left"}
    except OSError as error:
        return {"why": str(error)}
    if done.returncode:
        return {"why": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
