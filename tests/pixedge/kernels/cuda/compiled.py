"""Compile every kernel as its wrapper launches it, for a GPU that need not be there, and print what it takes.

    python compiled.py 86        # compute capability 8.6: one JSON object a kernel

The wrappers run on tensors without memory ("meta") in Pixtral-12B's shape; each launch is caught and compiled
down to the GPU's own code. Triton brings the compiler, so neither a GPU nor a driver is needed.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pixedge.kernels.cuda import (
    activation,
    decoding,
    int4,
    int8,
    norm,
    prefill,
    rotary,
    sampling,
    sums,
    tuning,
    unpacking,
)
from pixedge.kernels.cuda.pages import LayerPages

META = torch.device("meta")
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.int64: "i64",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Compiler:
    """Stands in for launches: compiles and measures what would have been launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.label = ""

    def launch(self, fn: Any, *args: Any, grid: object, warmup: bool, **options: Any) -> None:
        names = fn.arg_names
        values = dict(zip(names, args, strict=False)) | {k: v for k, v in options.items() if k in names}
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(fn.params):
            value = values[parameter.name]
            aligned = isinstance(value, torch.Tensor)  # torch's allocations are
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[parameter.name], constants[(index,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
            else:
                signature[parameter.name] = "i32"
                aligned = value % 16 == 0
            if aligned:
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn, signature, constants, attributes)
        chosen = {key: value for key, value in options.items() if key not in names}
        compiled = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=chosen)
        self.report(fn.__name__, compiled)

    def report(self, name: str, compiled: Any) -> None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage, code = (
                subprocess.run(
                    [TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True
                ).stdout
                for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
            )
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert found is not None, usage
        record = {
            "kernel": name,
            "case": self.label,
            "capability": self.capability,
            "registers": int(found[1]),
            "stack": int(found[2]),
            "shared": compiled.metadata.shared,
            "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
            "matrix_instructions": len(re.findall(r"\b(?:HMMA|HGMMA|WGMMA)\b", code)),
            "wide_loads": len(re.findall(r"\b(?:LDG|LDGSTS)\.E\.(?:\w+\.)*128\b", code)),
        }
        print(json.dumps(record), flush=True)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def weight(outputs: int, inputs: int, group: int, zeros: bool) -> int4.Int4Weight:
    words = meta(outputs // 16, inputs // 128, 16, 16, dtype=torch.int32)
    scales = meta(outputs // 16, inputs // group, 16, dtype=torch.float16)
    return int4.Int4Weight(words, scales, scales if zeros else None, None, outputs, inputs, group)


def pages(dtype: torch.dtype, eight: bool) -> LayerPages:
    shape = (1024, 8, 16, 128)
    if not eight:
        return LayerPages(meta(*shape, dtype=dtype), meta(*shape, dtype=dtype))
    stored, scales = meta(*shape, dtype=torch.int8), meta(*shape[:3], dtype=torch.float16)
    return LayerPages(stored, stored, scales, scales)


def launch_all(compiler: Compiler) -> None:
    ints = {name: meta(4, dtype=torch.int32) for name in ("positions", "sequences", "lengths", "starts")}
    tables, firsts = meta(4, 8192, dtype=torch.int32), meta(5, dtype=torch.int32)
    cos = meta(4, 64)
    compiler.label = "16 rows"
    logits, chosen = meta(16, 131072), meta(16, dtype=torch.int32)
    room = sampling.Room.allocate(16, 131072, META)
    sampling.greedy(logits, room, chosen)
    numbers = meta(16)
    draws = sampling.Draws(numbers, meta(16, dtype=torch.int32), numbers, numbers, numbers)
    sampling.tell(logits, chosen, room.totals, meta(16, 2, dtype=torch.int32))
    for room in (None, sampling.Sorted.allocate(16, 131072, META)):
        compiler.label = "16 rows" if room is None else "16 rows, sorted"
        sampling.draw(logits, draws, chosen, chosen, room)
    for dtype in (torch.bfloat16, torch.float16):
        for rows in (1, 8, 16):
            for group, zeros in ((128, False), (32, True)) if rows == 1 else ((128, False),):
                compiler.label = f"{TYPES[dtype]}, {rows} rows, groups of {group}"
                int4.few_rows(meta(rows, 5120, dtype=dtype), weight(5120, 5120, group, zeros))
            compiler.label = f"{TYPES[dtype]}, {rows} rows"
            int8.head(
                meta(rows, 5120, dtype=dtype),
                meta(131072, 5120, dtype=torch.int8),
                meta(131072, dtype=torch.bfloat16),
            )
        compiler.label = TYPES[dtype]
        unpacking.unpack(weight(5120, 5120, 128, False), meta(5120 * 5120, dtype=dtype))
        narrow = meta(4, 5120, dtype=dtype)
        sums.add_partials(meta(6, 4, 5120), narrow, narrow)
        norm.add_norm(narrow, meta(6, 4, 5120), meta(5120, dtype=dtype), 1e-5, narrow)
        activation.silu_mul(meta(2, 4, 28672), meta(4, 14336, dtype=dtype))
        for eight in (False, True):
            compiler.label = f"{TYPES[dtype]}, {8 if eight else 16}-bit pages"
            q, layer = meta(4, 32, 128, dtype=dtype), pages(dtype, eight)
            rotary.rotate_and_write(
                meta(6, 4, 6144), cos, cos, ints["positions"], ints["sequences"], tables, layer, q
            )
            parts = decoding.Parts.allocate(4, 32, 128, 8, META, 16)
            decoding.attend(q, layer, tables, ints["lengths"], parts, q)
            many = meta(512, 32, 128, dtype=dtype)
            prefill.attend_many(many, layer, tables, ints["starts"], firsts, many, 512)


def main() -> None:
    capability = int(sys.argv[1])
    compiler = Compiler(capability)
    shapes = tuning.ARCHITECTURES[divmod(capability, 10)]
    tuning.device = lambda of: tuning.Device(128, shapes)
    tuning.check_device = lambda *tensors: None
    triton.JITFunction.run = lambda fn, *args, **options: compiler.launch(fn, *args, **options)
    launch_all(compiler)


if __name__ == "__main__":
    main()
