"""Products of many rows with a packed 4-bit weight, against the same product in float64."""

import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixedge.kernels.cpu.compiled import variant
from pixedge.kernels.cpu.many_rows import int4_many_rows
from pixedge.kernels.cpu.products import Int4Cpu, dequantize_lines, int4_weight
from pixedge.packing import QuantizedWeight

pytestmark = pytest.mark.skipif(variant() != "amx", reason="needs a CPU with AMX (bfloat16 matrix tiles)")


def random_weight(out: int, inputs: int, group: int, asymmetric: bool, seed: int = 0) -> tuple[Tensor, ...]:
    """Return lines, scales and, where asymmetric, zeros of a random weight [out, inputs]."""
    random = torch.Generator().manual_seed(seed)
    groups = inputs // group
    q = torch.randint(0, 16, (out, inputs), dtype=torch.uint8, generator=random)
    scales = torch.rand(out, groups, generator=random) / 50 + 0.001
    zeros = torch.randint(0, 16, (out, groups), dtype=torch.uint8, generator=random) if asymmetric else None
    weight = QuantizedWeight(q, scales, group, zeros)
    return Int4Cpu().repack(weight, torch.bfloat16, torch.device("cpu"))


def check(x: Tensor, parts: tuple[Tensor, ...], y: Tensor | None = None) -> None:
    """Assert that the product is the exact one with bfloat16 weights, up to rounding."""
    lines, scales, *zeros = parts
    weight = dequantize_lines(lines, scales, zeros[0] if zeros else None).to(torch.bfloat16).double()
    if y is None:
        y = int4_many_rows(x, int4_weight(lines, scales, zeros[0] if zeros else None))
    assert y is not None and y.shape == (len(x), len(weight)) and y.dtype == torch.bfloat16
    exact = x.double() @ weight.t()
    # bfloat16 keeps 8 bits; float32 sums lose at most inputs * 2^-24 of the terms' sizes, in fact far less.
    bound = exact.abs() * 2**-8 + (x.double().abs() @ weight.t().abs()) * (x.shape[1] + 2) * 2**-24
    error = (y.double() - exact).abs()
    assert bool((error <= bound).all()), f"off by {float((error - bound).max())} beyond the bound"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(st.sampled_from([1, 15, 16, 17, 31, 32, 33, 64]), st.integers(1, 130)),
    blocks=st.integers(1, 9),
    group=st.sampled_from([8, 24, 32, 40, 64, 128, 256, 296]),
    groups=st.integers(1, 7),
    asymmetric=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_many_rows_are_the_product_with_the_unpacked_weight(
    rows: int, blocks: int, group: int, groups: int, asymmetric: bool, threads: int, seed: int
) -> None:
    parts = random_weight(16 * blocks, group * groups, group, asymmetric, seed)
    x = torch.randn(rows, group * groups, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # the library follows torch
    try:
        check(x, parts)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [511, 512, 513, 1040])
def test_rows_beyond_a_chunk(rows: int) -> None:
    """A chunk is 512 rows: one less, one whole, one that starts a second, and three."""
    parts = random_weight(80, 384, 128, asymmetric=True)
    check(torch.randn(rows, 384, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16), parts)


def test_outputs_beyond_the_widest_range() -> None:
    """A range of outputs is at most 512 wide; 1,552 leaves half a block of 32 in the last one."""
    parts = random_weight(1552, 520, 520, asymmetric=False)
    check(torch.randn(40, 520, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16), parts)


@pytest.mark.parametrize("rows", [17, 600])
def test_a_residual_is_added_before_rounding(rows: int) -> None:
    """Added after rounding, a sum would be off by a second 2^-9 of the product."""
    lines, scales = random_weight(48, 256, 128, asymmetric=False)
    random = torch.Generator().manual_seed(8)
    x = torch.randn(rows, 256, generator=random).to(torch.bfloat16)
    residual = torch.randn(rows, 48, generator=random).to(torch.bfloat16)
    y = int4_many_rows(x, int4_weight(lines, scales, None), residual)
    exact = x.double() @ dequantize_lines(lines, scales, None).to(torch.bfloat16).double().t() + residual
    assert y is not None
    assert bool(((y.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all())


def test_no_rows() -> None:
    lines, scales = random_weight(16, 32, 32, asymmetric=False)
    y = int4_many_rows(torch.empty(0, 32, dtype=torch.bfloat16), int4_weight(lines, scales, None))
    assert y is not None and y.shape == (0, 16)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Not even a row of NaN or infinities next door; the padding of the last block must not leak either."""
    lines, scales = random_weight(48, 256, 128, asymmetric=False)
    packed = int4_weight(lines, scales, None)
    x = torch.randn(37, 256, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    alone = int4_many_rows(x[5:6].contiguous(), packed)
    x[4], x[6] = float("nan"), float("inf")
    together = int4_many_rows(x, packed)
    assert alone is not None and together is not None
    assert torch.equal(alone[0], together[5])
    assert bool(together[4].isnan().all()) and not bool(together[7:].isnan().any())


def test_two_python_threads_at_once() -> None:
    parts = random_weight(256, 512, 128, asymmetric=True)
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    packed = int4_weight(*parts)
    results: list[Tensor | None] = []

    def several() -> None:
        results.extend(int4_many_rows(x, packed) for _ in range(20))

    workers = [threading.Thread(target=several) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 60
    for y in results:
        check(x, parts, y)


def test_another_kernel_leaves_it_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = random_weight(32, 64, 64, asymmetric=False)
    x = torch.randn(70, 64, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    packed = int4_weight(*parts, None)
    monkeypatch.setenv("PIXEDGE_CPU_KERNEL", "avx512")
    assert int4_many_rows(x, packed) is None
    y = Int4Cpu().matmul(x, *parts).double()
    exact = x.double() @ dequantize_lines(*parts, None).double().t()
    assert float((y - exact).norm()) < 0.02 * float(exact.norm())


def test_a_forked_child_multiplies() -> None:
    parts = random_weight(64, 128, 128, asymmetric=False)
    x = torch.randn(40, 128, generator=torch.Generator().manual_seed(6)).to(torch.bfloat16)
    packed = int4_weight(*parts, None)
    expected = int4_many_rows(x, packed)
    assert expected is not None
    child = os.fork()
    if child == 0:
        y = int4_many_rows(x, packed)
        os._exit(0 if y is not None and torch.equal(y, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
