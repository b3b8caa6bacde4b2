"""Finding the compiled library, choosing its instructions, and its threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pixedge.errors import UsageError
from pixedge.kernels import int4, int8
from pixedge.kernels.cpu import compiled as module
from pixedge.kernels.cpu.compiled import TORCH, VARIABLE, VARIANTS, aligned_empty, announce, library, variant
from pixedge.linear import Int4Linear
from pixedge.packing import QuantizedWeight
from tests.pixedge.kernels.cpu_variants import USABLE, chosen

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]

built = pytest.mark.skipif(not USABLE, reason="pixedge was installed without a C compiler")


def random_linear(outputs: int = 512) -> Int4Linear:
    g = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (outputs, 256), dtype=torch.uint8, generator=g)
    return Int4Linear(QuantizedWeight(q, torch.full((outputs, 2), 0.01), 128), torch.bfloat16, CPU)


@built
def test_every_variant_of_this_cpu_can_be_named() -> None:
    assert "c" in USABLE
    for name in USABLE:
        with chosen(name):
            assert variant() == name
    with chosen(""):
        assert variant() == USABLE[0]  # the best one


@built
def test_a_variant_of_another_cpu_is_a_usage_error() -> None:
    for name in set(VARIANTS) - set(USABLE):
        with chosen(name), pytest.raises(UsageError, match=f"'{name}', which this CPU does not have"):
            library()


def test_an_unknown_variant_is_a_usage_error() -> None:
    with chosen("sse9"), pytest.raises(UsageError, match=r"'sse9'; use one of amx, avx512, .*torch"):
        library()


def test_torch_leaves_the_library_out() -> None:
    with chosen(TORCH):
        assert library() is None and variant() == TORCH
        assert isinstance(int4.choose(torch.bfloat16, CPU, 64, 128), int4.TorchCpu)
        assert isinstance(int8.choose(torch.bfloat16, CPU, 64), int8.TorchCpu)


def test_without_a_library_torch_serves_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_open", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    announce.cache_clear()
    announce()
    announce()
    assert capsys.readouterr().err.count("no compiled CPU kernels") == 1
    assert isinstance(int4.choose(torch.bfloat16, CPU, 64, 128), int4.TorchCpu)
    assert aligned_empty((1 << 23,), torch.uint8).nbytes == 1 << 23
    monkeypatch.setenv(VARIABLE, "c")
    with pytest.raises(UsageError, match="installed without a C compiler"):
        library()
    announce.cache_clear()


@built
def test_weights_begin_on_a_line_or_a_large_page() -> None:
    for size in (64, 4096, 5 << 20):
        memory = aligned_empty((size // 64, 64), torch.uint8)
        assert memory.is_contiguous() and memory.data_ptr() % (64 if size < 4 << 20 else 2 << 20) == 0
        memory.fill_(7)


@built
def test_any_number_of_threads_gives_the_same_bits() -> None:
    linear, x = random_linear(), torch.randn(3, 256).bfloat16()
    expected, before = linear(x), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 64, 1, 64):
            torch.set_num_threads(threads)
            for _ in range(20):
                assert torch.equal(linear(x), expected)
    finally:
        torch.set_num_threads(before)


@built
def test_several_threads_of_the_program_take_turns() -> None:
    linear = random_linear()
    xs = [torch.randn(1 + row % 3, 256).bfloat16() for row in range(40)]
    expected = [linear(x) for x in xs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(linear, xs))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


FORK = """
import os, sys, torch
from pixedge.linear import Int8Linear
torch.set_num_threads(4)
torch.manual_seed(0)
linear = Int8Linear(torch.randn(4096, 512), torch.bfloat16, torch.device("cpu"))
x = torch.randn(2, 512).bfloat16()
expected = linear(x)
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        same = all(bool((linear(x) == expected).all()) for _ in range(20))
        os._exit(0 if same else 1)
    children.append(child)
assert bool((linear(x) == expected).all())
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@built
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_fork_after_loading_has_threads_of_its_own() -> None:
    """Only the forking thread lives on in a child: one that waited for the others would wait for ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
