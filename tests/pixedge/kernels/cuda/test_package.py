"""What importing the package does, what the wrappers refuse, and that every kernel compiles for every GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[3]


def run_python(*arguments: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_asking_for_the_kernels_imports_no_triton_and_touches_no_gpu() -> None:
    out = run_python(
        "-c",
        "import sys, torch; from pixedge.kernels import cuda\n"
        "print(cuda.available(torch.device('cpu')))\n"
        "print('triton' in sys.modules, torch.cuda.is_initialized())",
    )
    assert out.split() == ["False", "False", "False"]


def test_importing_every_module_touches_no_gpu() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    names = sorted(path.stem for path in (ROOT / "pixedge" / "kernels" / "cuda").glob("[a-z]*.py"))
    assert "int4" in names
    imports = "\n".join(f"import pixedge.kernels.cuda.{name}" for name in names)
    out = run_python("-c", f"{imports}\nimport torch; print(torch.cuda.is_initialized())")
    assert out.split() == ["False"]


def test_wrappers_refuse_what_the_kernels_would_misread() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    from pixedge.kernels.cuda import activation, int4, int8, norm, sampling, tuning
    from pixedge.packing import QuantizedWeight

    device = torch.device("cpu" if tuning.interpreted() else "cuda:0")
    q = torch.zeros(16, 128, dtype=torch.uint8)
    weight = int4.Int4Weight.pack(QuantizedWeight(q, torch.ones(16, 1), 128), device)
    half = torch.ones(2, 128, dtype=torch.float16, device=device)
    with pytest.raises(AssertionError, match="1 to 16 rows"):
        int4.few_rows(half.repeat(9, 1), weight)
    with pytest.raises(AssertionError, match=r"torch\.float32"):
        int4.few_rows(half.float(), weight)
    with pytest.raises(AssertionError, match="strides"):
        int4.few_rows(half.repeat(1, 2)[:, ::2], weight)
    with pytest.raises(AssertionError, match="64 inputs"):
        int4.few_rows(half[:, :64].contiguous(), weight)
    with pytest.raises(AssertionError):
        int8.head(half, torch.zeros(4, 64, dtype=torch.int8, device=device), torch.ones(4, device=device))
    with pytest.raises(AssertionError):
        norm.add_norm(half, None, half[0].float(), 1e-5, half)
    with pytest.raises(AssertionError):
        activation.silu_mul(half[None], half)
    with pytest.raises(AssertionError, match="room"):
        room = sampling.Room.allocate(1, 128, device)
        sampling.greedy(half, room, torch.zeros(2, dtype=torch.int32, device=device))
    other = torch.device("meta")
    with pytest.raises(AssertionError, match=r"cannot run|tensors on"):
        int4.few_rows(half.to(other), weight)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 89, 90, 120])
def test_every_kernel_compiles_and_keeps_to_its_registers(capability: int) -> None:
    """Down to the GPU's own code, without a GPU: no register spilled, shared memory within a card's limit.

    A block may have 99 KB of shared memory on GeForce 30 and 40, and 227 KB on Hopper.
    """
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    out = run_python(str(HERE / "compiled.py"), str(capability), TRITON_INTERPRET="0")
    records = [json.loads(line) for line in out.splitlines()]
    assert len({record["kernel"] for record in records}) >= 12
    for record in records:
        assert record["spills"] == record["stack"] == 0, record
        assert record["shared"] <= (227 if capability == 90 else 99) * 1024, record
        if record["kernel"] in ("_few_rows", "_head", "_attend_part", "_attend_block"):
            assert record["matrix_instructions"] > 0 and record["wide_loads"] > 0, record


@pytest.mark.slow
def test_the_timings_run() -> None:
    """On tiny shapes: what a GPU's first hour runs must not fail there for the first time."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    out = run_python("-W", "ignore", str(HERE / "timed.py"), "--tiny")
    kernels = {json.loads(line).get("kernel") for line in out.splitlines()}
    assert {
        "few_rows",
        "unpack",
        "head",
        "sort and draw",
        "attend",
        "add_norm",
        "rotate_and_write",
    } <= kernels
