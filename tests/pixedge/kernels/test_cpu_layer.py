"""The fused layer against the layer that it replaces, computed in float32 from the same packed weights.

Pages of the cache are filled with NaN first, 0xffff, so that a token that is read without having been
written, or a scale that is not masked, cannot pass unseen.
"""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixedge.config import DecoderConfig
from pixedge.decoder import DecoderLayer
from pixedge.kernels.cpu.compiled import TORCH
from pixedge.kernels.cpu.fused_layer import FusedLayer, fuse
from pixedge.kernels.cpu.products import dequantize_lines
from pixedge.kv_cache import PagedStep, PagePool
from pixedge.linear import Int4Linear
from pixedge.packing import QuantizedWeight
from pixedge.rope import rotary_1d
from tests.pixedge.kernels.cpu_variants import USABLE, chosen

CPU = torch.device("cpu")
CONFIG = DecoderConfig(
    dim=128,
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    head_dim=128,
    ffn_dim=256,
    vocab_size=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    context=4096,
)
PAGES = 300

pytestmark = pytest.mark.skipif(not USABLE, reason="pixedge was installed without a C compiler")


def random_layer(config: DecoderConfig, group: int = 64, *, foreign: bool = False) -> DecoderLayer:
    """Make a layer of random 4-bit weights that keep the size of what they multiply."""

    def linear(in_features: int, out_features: int) -> nn.Module:
        q = torch.randint(0, 16, (out_features, in_features), dtype=torch.uint8)
        scales = ((0.5 + torch.rand(out_features, in_features // group)) / (4.6 * in_features**0.5)).half()
        zeros = torch.randint(5, 11, scales.shape, dtype=torch.uint8) if foreign else None
        return Int4Linear(QuantizedWeight(q, scales.float(), group, zeros), torch.bfloat16, CPU)

    layer = DecoderLayer(config, linear)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.weight = nn.Parameter((0.5 + torch.rand(config.dim)).bfloat16())
    return layer.requires_grad_(False)


def in_float32(layer: DecoderLayer) -> DecoderLayer:
    """Return the same layer with dense float32 weights."""
    fused, layer.fused = layer.fused, None
    plain = copy.deepcopy(layer).float()
    layer.fused = fused
    for name, linear in list(plain.named_modules()):
        if isinstance(linear, Int4Linear):
            dense = nn.Linear(1, 1, bias=False)
            dense.weight = nn.Parameter(dequantize_lines(linear.weight, linear.scales, linear.zeros))
            plain.set_submodule(name, dense)
    return plain.requires_grad_(False)


def filled_pool(config: DecoderConfig, bits: int, tables: Tensor, starts: list[int]) -> PagePool:
    """Make a pool that holds ``starts`` tokens of each sequence, and NaN everywhere else."""
    pool = PagePool.allocate(config, PAGES, torch.bfloat16, CPU, bits=bits)
    for store in (pool.keys, pool.values, pool.key_scales, pool.value_scales):
        if store is not None:
            store.view(torch.uint8).fill_(0xFF)
    held = [(row, start) for row, start in enumerate(starts) if start]
    if held:
        rows = torch.tensor([row for row, _ in held])
        counts = torch.tensor([start for _, start in held], dtype=torch.int32)
        step = PagedStep(pool, tables[rows].contiguous(), torch.zeros_like(counts), counts)
        for layer in range(config.n_layers):
            shape = (step.tokens, config.n_kv_heads, config.head_dim)
            step.write(layer, torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16())
    return pool


def copied(pool: PagePool, *, wide: bool = False) -> PagePool:
    stores = [pool.keys.clone(), pool.values.clone()]
    if pool.key_scales is not None and pool.value_scales is not None:
        return PagePool(*stores, pool.key_scales.clone(), pool.value_scales.clone())
    return PagePool(*(store.float() if wide else store for store in stores))


def check(
    layer: DecoderLayer, config: DecoderConfig, bits: int, spans: list[tuple[int, int]], seed: int
) -> None:
    """Run a step of (start, count) per sequence both ways and compare the result and the cache."""
    torch.manual_seed(seed)
    starts, counts = [start for start, _ in spans], [count for _, count in spans]
    width = max(-(-(start + count) // 16) for start, count in spans)
    tables = torch.randperm(PAGES)[: len(spans) * width].view(len(spans), width).int()
    pool = filled_pool(config, bits, tables, starts)
    wide, untouched = copied(pool, wide=True), pool.keys[0].clone().view(torch.uint8)
    ends = (torch.tensor(starts, dtype=torch.int32), torch.tensor(counts, dtype=torch.int32))
    positions = torch.cat([torch.arange(start, start + count) for start, count in spans])
    cos, sin = rotary_1d(positions, config.head_dim, config.rope_theta)
    x = torch.randn(sum(counts), config.dim).bfloat16()
    fuse([layer])
    step = PagedStep(pool, tables, *ends)
    assert layer.fused is not None and layer.fused.takes(x, step)
    found = layer(1, x, cos, sin, step)
    expected = in_float32(layer)(1, x.float(), cos, sin, PagedStep(wide, tables, *ends))
    assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())
    # seven products, each off by some 0.6 % where the weights are random
    assert float((found - expected).norm()) < 0.04 * float((expected - x.float()).norm())
    # what was written lies where the reference puts it, and the other layer is untouched
    written = ~torch.isnan(wide.keys[1].float()) if bits == 16 else wide.keys[1] != -1
    mine = pool.keys[1].float()[written]
    theirs = wide.keys[1].float()[written]
    assert float((mine - theirs).norm()) < 0.03 * float(theirs.norm())
    assert torch.equal(pool.keys[0].view(torch.uint8), untouched)


@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1)],
        [(15, 1)],
        [(16, 1)],
        [(700, 1)],
        [(0, 16)],
        [(130, 16)],
        [(15, 1), (16, 1), (100, 2)],
        [(40, 9), (1000, 3), (0, 1)],
    ],
)
def test_a_step_is_what_the_layer_computes(variant: str, bits: int, spans: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    with chosen(variant):
        check(random_layer(CONFIG), CONFIG, bits, spans, 0)


@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("bits", [16, 8])
def test_both_norms_take_the_layer_s_epsilon(variant: str, bits: int) -> None:
    """An epsilon as large as what is normalised decides the result; at 1e-5 beside 1 nobody would see it."""
    config = replace(CONFIG, norm_eps=0.3)
    torch.manual_seed(0)
    with chosen(variant):
        check(random_layer(config), config, bits, [(15, 1), (100, 2)], 0)


@pytest.mark.parametrize("variant", USABLE)
@pytest.mark.parametrize("bits", [16, 8])
def test_keys_and_values_are_rounded_not_truncated(variant: str, bits: int) -> None:
    """Truncation makes every stored number smaller: by 0.27 % on average in bfloat16, by 1.3 % in 8 bits.

    The comparison with a bound on the norm lets that pass. What the products' own rounding adds has no sign,
    and over 4,096 numbers it leaves some 0.01 %.
    """
    torch.manual_seed(0)
    layer = random_layer(CONFIG)
    tables = torch.arange(2, dtype=torch.int32)[None]
    starts, counts = torch.zeros(1, dtype=torch.int32), torch.full((1,), 16, dtype=torch.int32)
    cos, sin = rotary_1d(torch.arange(16), CONFIG.head_dim, CONFIG.rope_theta)
    x = torch.randn(16, CONFIG.dim).bfloat16()
    pool = PagePool.allocate(CONFIG, 2, torch.bfloat16, CPU, bits=bits)
    with chosen(variant):
        fuse([layer])
        layer(1, x, cos, sin, PagedStep(pool, tables, starts, counts))
    exact = PagePool.allocate(CONFIG, 2, torch.float32, CPU, bits=16)
    in_float32(layer)(1, x.float(), cos, sin, PagedStep(exact, tables, starts, counts))
    for stored, scales, wanted in (
        (pool.keys, pool.key_scales, exact.keys),
        (pool.values, pool.value_scales, exact.values),
    ):
        found = stored[1, 0].float() if scales is None else stored[1, 0].float() * scales[1, 0, ..., None]
        shrunk = ((found - wanted[1, 0]) * wanted[1, 0].sign()).sum() / wanted[1, 0].abs().sum()
        assert abs(float(shrunk)) < 1e-3


@pytest.mark.parametrize("variant", USABLE)
@settings(max_examples=12)
@given(
    st.sampled_from((16, 32, 48, 128)),
    st.integers(1, 3),
    st.integers(1, 6),
    st.sampled_from((8, 16)),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 4)), min_size=1, max_size=4),
    st.booleans(),
)
def test_other_shapes(
    variant: str,
    head_dim: int,
    kv_heads: int,
    groups: int,
    bits: int,
    spans: list[tuple[int, int]],
    foreign: bool,
) -> None:
    config = replace(CONFIG, head_dim=head_dim, n_kv_heads=kv_heads, n_heads=kv_heads * groups)
    torch.manual_seed(head_dim)
    with chosen(variant):
        check(random_layer(config, 16, foreign=foreign), config, bits, spans, 1)


def run(layer: DecoderLayer, bits: int, spans: list[tuple[int, int]], x: Tensor) -> Tensor:
    """Run one step over a cache that is the same in every call."""
    torch.manual_seed(5)
    tables = torch.randperm(PAGES)[: 70 * len(spans)].view(len(spans), 70).int()
    pool = filled_pool(CONFIG, bits, tables, [start for start, _ in spans])
    positions = torch.cat([torch.arange(start, start + count) for start, count in spans])
    ends = torch.tensor(spans, dtype=torch.int32).t().contiguous()
    out: Tensor = layer(
        1, x, *rotary_1d(positions, CONFIG.head_dim, 1e4), PagedStep(pool, tables, ends[0], ends[1])
    )
    return out


@pytest.mark.parametrize("threads", [1, 3, 64])
@pytest.mark.parametrize("bits", [16, 8])
def test_threads_change_only_how_a_context_is_cut(threads: int, bits: int) -> None:
    torch.manual_seed(0)
    layer = random_layer(CONFIG)
    fuse([layer])
    spans, x = [(1000, 2), (3, 1)], torch.randn(3, CONFIG.dim).bfloat16()
    before = torch.get_num_threads()
    expected = run(layer, bits, spans, x)
    try:
        torch.set_num_threads(threads)
        found = run(layer, bits, spans, x)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("variant", USABLE)
def test_what_is_no_number_stays_in_its_row(variant: str) -> None:
    torch.manual_seed(0)
    layer = random_layer(CONFIG)
    x = torch.randn(2, CONFIG.dim).bfloat16()
    x[1, 5] = torch.nan
    for bits in (16, 8):
        with chosen(variant):
            fuse([layer])
            found = run(layer, bits, [(40, 1), (50, 1)], x)
        assert bool(found[1].isnan().all()) and bool(found[0].isfinite().all())


def test_many_tokens_and_other_caches_take_the_plain_way() -> None:
    torch.manual_seed(0)
    layer = random_layer(CONFIG)
    fuse([layer])
    fused = layer.fused
    assert fused is not None
    tables = torch.zeros(1, 8, dtype=torch.int32)
    one = torch.ones(1, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float32):
        pool = PagePool.allocate(CONFIG, 8, dtype, CPU)
        step = PagedStep(pool, tables, one, one)
        assert fused.takes(torch.zeros(1, 128).bfloat16(), step) == (dtype == torch.bfloat16)
        with chosen("c"):  # many tokens are for matrix tiles
            assert not fused.takes(torch.zeros(17, 128).bfloat16(), step)
    assert not fused.takes(torch.zeros(1, 128).bfloat16(), lambda layer, q, k, v: q)
    with chosen(TORCH):
        assert not fused.takes(torch.zeros(1, 128).bfloat16(), step)


def test_layers_that_do_not_fit_stay_as_they_are() -> None:
    layer = random_layer(CONFIG)
    assert FusedLayer.fits(layer)
    layer.self_attn.q_proj.order = torch.arange(128)
    assert not FusedLayer.fits(layer)
    dense = DecoderLayer(CONFIG, lambda i, o: nn.Linear(i, o, bias=False))
    fuse([dense])
    assert dense.fused is None


def test_a_page_that_the_pool_does_not_have_is_refused() -> None:
    layer = random_layer(CONFIG)
    fuse([layer])
    pool = PagePool.allocate(CONFIG, 4, torch.bfloat16, CPU)
    one = torch.ones(1, dtype=torch.int32)
    tables = torch.tensor([[4, 99]], dtype=torch.int32)
    with pytest.raises((AssertionError, IndexError)):
        step = PagedStep(pool, tables, one, one)
        layer(0, torch.zeros(1, 128).bfloat16(), torch.ones(1, 64), torch.ones(1, 64), step)
