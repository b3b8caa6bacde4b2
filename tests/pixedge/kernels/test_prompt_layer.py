"""The parts between a prompt's products, and the layer made of them, against the plain layer in float32."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cpu.compiled import variant
from pixedge.kernels.cpu.fused_layer import FusedLayer, fuse
from pixedge.kernels.cpu.prompt_rows import gate_rows, norm_rows, turn_rows
from pixedge.kv_cache import PagedStep
from pixedge.rope import apply_rotary, rotary_1d
from tests.pixedge.kernels.test_cpu_layer import CONFIG, PAGES, copied, filled_pool, in_float32, random_layer

pytestmark = pytest.mark.skipif(variant() != "amx", reason="needs a CPU with AMX (bfloat16 matrix tiles)")

ROWS = st.one_of(st.sampled_from([1, 8, 9]), st.integers(1, 40))


def close(found: Tensor, wanted: Tensor) -> None:
    """Assert that found is wanted, rounded to bfloat16 once."""
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
    error = (found.double() - wanted).abs()
    assert bool((error <= wanted.abs() * (2**-8 + 1e-5) + 1e-6).all()), float(error.max())


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, dim=st.integers(1, 200), size=st.sampled_from([5.0, 1e-3]), seed=st.integers(0, 999))
def test_norm(rows: int, dim: int, size: float, seed: int) -> None:
    """At a size of 1e-3 the mean square is a tenth of epsilon, which then decides the result."""
    random = torch.Generator().manual_seed(seed)
    x = (size * torch.randn(rows, dim, generator=random)).bfloat16()
    weight = torch.rand(dim, generator=random)
    wanted = functional.rms_norm(x.double(), (dim,), weight.double(), 1e-5)
    close(norm_rows(x, weight, 1e-5), wanted)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, heads=st.integers(1, 5), half=st.integers(1, 70), seed=st.integers(0, 999))
def test_turn(rows: int, heads: int, half: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, heads, 2 * half, generator=random).bfloat16()
    cos, sin = rotary_1d(torch.arange(rows) + 7, 2 * half, 1e4)
    cos, sin = cos.contiguous(), sin.contiguous()
    wanted = apply_rotary(x.float(), cos, sin).double()
    error = (turn_rows(x.clone(), cos, sin).double() - wanted).abs()
    assert bool((error <= wanted.abs() * 2**-8 + 1e-5).all()), float(error.max())


@settings(max_examples=30, deadline=None)
@given(
    rows=ROWS, width=st.integers(1, 200), size=st.sampled_from([0.1, 3.0, 300.0]), seed=st.integers(0, 999)
)
def test_gate(rows: int, width: int, size: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    gate = (size * torch.randn(rows, width, generator=random)).bfloat16()
    up = torch.randn(rows, width, generator=random).bfloat16()
    wanted = functional.silu(gate.double()) * up.double()
    close(gate_rows(gate.clone(), up), wanted)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("spans", [[(0, 17)], [(33, 40)], [(0, 20), (100, 30), (5, 1)]])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_a_prompts_layer_is_the_layer(bits: int, spans: list[tuple[int, int]], epsilon: float) -> None:
    torch.manual_seed(3)
    layer = random_layer(replace(CONFIG, norm_eps=epsilon))
    fuse([layer])
    assert isinstance(layer.fused, FusedLayer)
    starts, counts = [start for start, _ in spans], [count for _, count in spans]
    tables = torch.randperm(PAGES)[: len(spans) * 10].view(len(spans), 10).int()
    pool = filled_pool(CONFIG, bits, tables, starts)
    wide = copied(pool, wide=True)
    ends = (torch.tensor(starts, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32))
    positions = torch.cat([torch.arange(start, start + count) for start, count in spans])
    angles = rotary_1d(positions, CONFIG.head_dim, CONFIG.rope_theta)
    x = torch.randn(sum(counts), CONFIG.dim).bfloat16()
    step = PagedStep(pool, tables, *ends)
    assert layer.fused.takes(x, step)
    found = layer(1, x, *angles, step)
    wanted = in_float32(layer)(1, x.float(), *angles, PagedStep(wide, tables, *ends))
    assert found.dtype == torch.bfloat16 and not bool(found.isnan().any())
    # Two roundings of 2^-9 on either side of each product, of which none is amplified.
    assert float((found.float() - wanted).norm() / wanted.norm()) < 0.01


def test_without_tiles_a_prompt_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(CONFIG)
    fuse([layer])
    tables = torch.arange(4, dtype=torch.int32)[None].contiguous()
    pool = filled_pool(CONFIG, 16, tables, [0])
    step = PagedStep(pool, tables, torch.zeros(1, dtype=torch.int32), torch.full((1,), 40, dtype=torch.int32))
    x = torch.randn(40, CONFIG.dim).bfloat16()
    assert layer.fused is not None and layer.fused.takes(x, step)
    monkeypatch.setenv("PIXEDGE_CPU_KERNEL", "avx512")
    assert not layer.fused.takes(x, step)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: norm_rows(x, torch.ones(7), 1e-5),
        lambda x: turn_rows(x[:, None], torch.ones(2, 3), torch.ones(2, 3)),
        lambda x: gate_rows(x, x[:1]),
        lambda x: norm_rows(x.float(), torch.ones(8), 1e-5),
        lambda x: norm_rows(x.t(), torch.ones(2), 1e-5),
    ],
)
def test_wrong_shapes_are_refused(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        call(torch.zeros(2, 8, dtype=torch.bfloat16))
