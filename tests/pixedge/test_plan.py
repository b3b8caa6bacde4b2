"""The plan of memory: against what is really allocated, its promises for Pixtral-12B, and its inverse."""

import re
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixedge.budget import plan_load
from pixedge.config import ModelConfig
from pixedge.errors import CapacityError
from pixedge.kernels.cpu.compiled import VARIABLE
from pixedge.known_shapes import DEMO, PIXTRAL_12B, SHAPES
from pixedge.kv_cache import PagePool
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.loading import held_layout
from pixedge.memory import enforce
from pixedge.packing import QuantizedWeight
from pixedge.plan import (
    MOST_KEPT,
    Components,
    Setup,
    Workload,
    largest_batch,
    largest_cache,
    largest_context,
    make_plan,
)
from pixedge.scratch import cpu_scratch, encoder_activations, picture_patches, picture_tokens
from pixedge.stored_weights import (
    embeddings_bytes,
    encoder_weights,
    head_bytes,
    linear_shapes,
    linears_bytes,
    token_bytes,
)
from pixedge.tensor_shapes import expected_shapes
from tests.exported_demo import DEMO as DEMO_FOLDER
from tests.random_models import CPU, quantizable_config

GIB = 1 << 30
WHOLE = Workload(context=131_072)
CUDA = Setup()
ON_CPU = Setup(device="cpu", vision_device="cpu")


# Against what is allocated


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("variable", ["", "torch"])
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_take_what_is_told(
    dtype: torch.dtype, variable: str, zeros: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, variable)
    config = replace(quantizable_config().decoder, n_heads=4, head_dim=16, n_kv_heads=2, dim=64, ffn_dim=96)
    layout = held_layout(dtype, CPU, 32)
    assert (layout == "reference") == (dtype != torch.bfloat16)
    held = 0
    for outs, ins in linear_shapes(config).values():
        points = torch.full((outs, ins // 32), 7, dtype=torch.uint8) if zeros else None
        q = torch.zeros(outs, ins, dtype=torch.uint8)
        weight = QuantizedWeight(q, torch.ones(outs, ins // 32), 32, points)
        parts = [part for part in Int4Linear(weight, dtype, CPU).buffers() if part is not None]
        held += config.n_layers * sum(part.nbytes for part in parts)
    assert linears_bytes(config, 32, layout, zeros=zeros, itemsize=dtype.itemsize) == held
    head = Int8Linear(torch.ones(config.vocab_size, config.dim), dtype, CPU)
    assert head_bytes(config, layout) == pytest.approx(sum(part.nbytes for part in head.buffers()), abs=64)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_token_takes_what_the_pool_allocates(bits: int) -> None:
    pool = PagePool.allocate(DEMO.decoder, 3, torch.bfloat16, CPU, bits=bits)
    stores = [pool.keys, pool.values, pool.key_scales, pool.value_scales]
    assert 48 * token_bytes(DEMO.decoder, bits) == sum(store.nbytes for store in stores if store is not None)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_cpu_s_step_takes_its_logits(batch: int) -> None:
    """Of Pixtral-12B, 1.5 MB an answer: what the head gives and its copy in float32, made here."""
    vocab = 50_000
    head = Int8Linear(torch.zeros(vocab, DEMO.decoder.dim), torch.bfloat16, CPU)
    logits = head(torch.zeros(batch, DEMO.decoder.dim, dtype=torch.bfloat16))
    held = logits.nbytes + logits.float().nbytes

    def step(vocab_size: int) -> int:
        return cpu_scratch(replace(DEMO.decoder, vocab_size=vocab_size), "cpu", chunk=512, batch=batch)[1]

    assert held <= step(vocab + 8) - step(8) <= 2 * held


def test_the_encoder_has_as_many_weights_as_its_tensors() -> None:
    for config in SHAPES.values():
        shapes = expected_shapes(config)
        found = sum(
            torch.Size(shape).numel() for name, shape in shapes.items() if not name.startswith("language")
        )
        assert encoder_weights(config) == found


def test_the_demo_s_shape_is_that_of_its_checkpoint() -> None:
    assert ModelConfig.load(DEMO_FOLDER) == DEMO


# Promises


def test_pixtral_s_whole_context_fits_24_gib() -> None:
    plan = make_plan(PIXTRAL_12B, CUDA, WHOLE, 24 * GIB)
    assert plan.fits and not plan.setup.host_embeddings
    assert plan.total == plan.device.total == sum(asdict(plan.device).values()) < 24 * GIB
    assert plan.device.kv_cache == 131_072 * token_bytes(PIXTRAL_12B.decoder, 8)
    nothing = {name for name, size in asdict(plan.device).items() if not size}
    assert nothing == {"process"}, "every component of a GPU counts"


def test_pixtral_with_16_384_tokens_fits_12_gib() -> None:
    assert make_plan(PIXTRAL_12B, CUDA, Workload(context=16_384), 12 * GIB).fits


def test_16_bits_need_another_card() -> None:
    assert not make_plan(PIXTRAL_12B, replace(CUDA, kv_bits=16), WHOLE, 24 * GIB).fits


def test_embeddings_go_to_host_memory_only_where_that_makes_it_fit() -> None:
    work = Workload(context=16_384)
    total = make_plan(PIXTRAL_12B, replace(CUDA, host_embeddings=False), work).total
    table = embeddings_bytes(PIXTRAL_12B.decoder)
    for limit, host, fits in (
        (total, False, True),
        (total - 1, True, True),
        (total - 2 * table, True, False),
    ):
        plan = make_plan(PIXTRAL_12B, CUDA, work, limit)
        assert (plan.setup.host_embeddings, plan.fits) == (host, fits)
        assert plan.host.embeddings == (table if host else 0)
        assert plan.device.embeddings == (0 if host else table)


def test_an_encoder_on_the_cpu_takes_the_host_s_memory() -> None:
    both = make_plan(PIXTRAL_12B, CUDA, WHOLE)
    apart = make_plan(PIXTRAL_12B, replace(CUDA, vision_device="cpu"), WHOLE)
    assert apart.device.encoder_weights == apart.device.encoder_activations == 0
    assert apart.host.encoder_weights == 2 * both.device.encoder_weights  # float32
    assert apart.torch_limit is None
    assert make_plan(PIXTRAL_12B, CUDA, WHOLE, 24 * GIB).torch_limit == (
        24 * GIB - both.device.cuda_context - both.arena
    )


def test_an_encoder_on_a_gpu_beside_a_decoder_on_the_cpu() -> None:
    plan = make_plan(PIXTRAL_12B, replace(CUDA, device="cpu"), WHOLE)
    assert plan.device.encoder_weights == 0 and plan.device.process
    assert plan.arena == plan.host.encoder_weights + plan.host.encoder_activations > 0


def test_a_cpu_maps_its_embeddings_unless_they_are_widened() -> None:
    assert make_plan(PIXTRAL_12B, ON_CPU, WHOLE).device.embeddings == 0
    wide = make_plan(PIXTRAL_12B, replace(ON_CPU, dtype="float32"), WHOLE)
    assert wide.device.embeddings == embeddings_bytes(PIXTRAL_12B.decoder, 4)


# Inverse

workloads = st.builds(
    Workload,
    context=st.integers(1, 200_000),
    batch=st.integers(1, 16),
    picture=st.none() | st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
)
setups = st.builds(
    Setup,
    device=st.sampled_from(["cuda", "cpu"]),
    vision_device=st.sampled_from(["cuda", "cpu"]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    kv_bits=st.sampled_from([8, 16]),
)


@settings(deadline=None, max_examples=50)
@given(setups, workloads, st.integers(1, 60))
def test_the_largest_that_fits_fits_and_no_more_does(setup: Setup, work: Workload, gibibytes: int) -> None:
    limit, config = gibibytes * GIB, PIXTRAL_12B

    def fits(**changes: int) -> bool:
        return make_plan(config, setup, replace(work, **changes), limit).fits

    context = largest_context(config, setup, work, limit)
    assert context % 16 == 0 and context <= config.decoder.context
    assert not context or fits(context=context)
    assert context == config.decoder.context or not fits(context=context + 16)
    batch = largest_batch(config, setup, work, limit)
    assert not batch or fits(batch=batch)
    assert batch == 16 or not fits(batch=batch + 1)
    cache = largest_cache(config, setup, work, limit)
    assert cache <= work.cache_tokens and (not cache or fits(cache=cache))


@settings(deadline=None, max_examples=50)
@given(setups, workloads)
def test_more_never_takes_less(setup: Setup, work: Workload) -> None:
    total = make_plan(PIXTRAL_12B, setup, work).total
    assert make_plan(PIXTRAL_12B, setup, replace(work, context=work.context + 100)).total >= total
    assert make_plan(PIXTRAL_12B, setup, replace(work, batch=work.batch + 1)).total >= total
    assert make_plan(PIXTRAL_12B, setup, replace(work, picture=(3000, 3000))).total >= total


def test_pictures() -> None:
    assert picture_tokens(PIXTRAL_12B, 1024, 1024) == 4160
    assert picture_tokens(PIXTRAL_12B, 4000, 4000) == 4160
    assert picture_tokens(PIXTRAL_12B, 17, 16) == 3
    assert picture_patches(PIXTRAL_12B, 1024, 512) == 2048
    assert encoder_activations(PIXTRAL_12B, 0, "fused") == 0
    none = make_plan(PIXTRAL_12B, CUDA, replace(WHOLE, picture=None))
    assert none.device.encoder_activations == none.device.pictures == none.kept_pictures == 0
    small = make_plan(DEMO, CUDA, Workload(100, picture=(256, 256)))
    assert small.kept_pictures == MOST_KEPT * small.one_picture == MOST_KEPT * 256 * 256 * 2


def test_json_has_every_component() -> None:
    found = make_plan(PIXTRAL_12B, CUDA, WHOLE, 24 * GIB).to_json()
    assert set(found) == {"setup", "workload", "device", "host", "total", "limit", "left", "fits"}
    assert set(found["device"]) == {*asdict(Components()), "total"} == set(found["host"])
    assert found["left"] == 24 * GIB - found["total"]


# What is loaded by


def test_the_whole_context_is_loaded_where_it_fits() -> None:
    plan = plan_load(PIXTRAL_12B, CUDA, limit=24 * GIB)
    assert plan.workload.cache_tokens == 131_072 and plan.kept_pictures == 256 << 20
    assert plan_load(PIXTRAL_12B, CUDA, limit=None).workload.cache_tokens == 131_072


def test_a_smaller_cache_where_it_does_not() -> None:
    plan = plan_load(PIXTRAL_12B, CUDA, limit=12 * GIB, batch=4)
    tokens = plan.workload.cache_tokens
    assert plan.fits and 16_384 < tokens < 131_072 and tokens % 16 == 0
    assert plan.setup.host_embeddings and plan.kept_pictures == 256 << 20
    more = replace(plan.workload, cache=tokens + 16)
    assert not make_plan(PIXTRAL_12B, replace(CUDA, host_embeddings=True), more, 12 * GIB).fits


def test_kept_pictures_give_way_before_there_is_no_cache() -> None:
    least = make_plan(PIXTRAL_12B, replace(CUDA, picture_bytes=0, host_embeddings=True), Workload(4096)).total
    plan = plan_load(PIXTRAL_12B, CUDA, limit=least)
    assert plan.kept_pictures < 256 << 20 and plan.workload.cache_tokens >= 2048
    assert plan_load(PIXTRAL_12B, CUDA, limit=least, tokens=4096).kept_pictures == 0


@pytest.mark.parametrize(
    ("limit", "tokens", "bits", "sentence"),
    [
        (12, 65_536, 8, r"give a --context of at most [\d,]{5,6}$"),
        (12, 65_536, 16, r"give a --context of at most [\d,]{5,6}, or give --kv-cache 8bit$"),
        (6, None, 8, r"free some memory, or give a greater --vram-limit or a smaller --max-image-size$"),
        (6, 4096, 8, r"free some memory, or give a greater --vram-limit"),
    ],
)
def test_what_cannot_be_is_refused_with_the_numbers(
    limit: int, tokens: int | None, bits: int, sentence: str
) -> None:
    with pytest.raises(CapacityError, match=sentence) as raised:
        plan_load(PIXTRAL_12B, replace(CUDA, kv_bits=bits), limit=limit * GIB, tokens=tokens)
    numbers = (
        r"the model takes [\d.]+ GiB \(weights [\d.]+ GiB, [\d,]+ tokens of cache [\d.]+ \wiB, all else "
    )
    assert re.match(numbers, str(raised.value)), raised.value
    assert f"and may take {limit}.00 GiB; " in str(raised.value)


def test_the_most_that_is_named_fits() -> None:
    with pytest.raises(CapacityError) as raised:
        plan_load(PIXTRAL_12B, CUDA, limit=12 * GIB, tokens=100_000)
    most = int(str(raised.value).rpartition(" ")[2].replace(",", ""))
    assert plan_load(PIXTRAL_12B, CUDA, limit=12 * GIB, tokens=most).fits
    with pytest.raises(CapacityError):
        plan_load(PIXTRAL_12B, CUDA, limit=12 * GIB, tokens=most + 16)


def test_torch_gets_what_cuda_and_the_encoder_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself judges the device: what it would do with it is caught behind its own checks."""
    asked: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (130 * GIB, 140 * GIB))
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *call: asked.append(call), raising=False)
    plan, device = plan_load(PIXTRAL_12B, CUDA, limit=24 * GIB), torch.device("cuda:0")
    enforce(plan, device)
    enforce(plan, CPU)
    enforce(replace(plan, limit=None), device)
    with pytest.raises(ValueError, match="with a specified index"):
        enforce(plan, torch.device("cuda"))
    ((share, index),) = asked
    assert index == device.index
    assert share * 140 * GIB + plan.arena + plan.device.cuda_context == pytest.approx(24 * GIB)
