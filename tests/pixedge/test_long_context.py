"""The whole context of 131,072 tokens: on layers of full width, and through the engine on narrow ones."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.decoder import Decoder, DecoderLayer
from pixedge.engine import Engine, EngineOptions
from pixedge.kernels.attention import PAGE
from pixedge.kv_cache import PagedStep, PagePool
from pixedge.rope import rotary_1d
from pixedge_export.synthetic import PIXTRAL_12B
from tests.engines import check_books, embed, forced_logits, whole_logits
from tests.random_models import (
    CPU,
    TorchVision,
    build_encoder,
    make_prompt,
    random_config,
    random_tensors,
    random_text,
)

CONTEXT = 131_072
WIDE = replace(PIXTRAL_12B.decoder, n_layers=1)

pytestmark = pytest.mark.slow


def filled(tokens: int, generator: torch.Generator) -> tuple[PagePool, Tensor, Tensor, Tensor]:
    """Fill an 8-bit cache with ``tokens`` random tokens, in pages of any order: pool, table, keys, values."""
    pool = PagePool.allocate(WIDE, CONTEXT // PAGE, torch.bfloat16, CPU, bits=8)
    table = torch.randperm(CONTEXT // PAGE, generator=generator).to(torch.int32)[None]
    shape = (tokens, WIDE.n_kv_heads, WIDE.head_dim)
    keys, values = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
    place = torch.tensor([0], dtype=torch.int32), torch.tensor([tokens], dtype=torch.int32)
    PagedStep(pool, table, *place).write(0, keys, values)
    return pool, table, keys, values


def step(pool: PagePool, table: Tensor, start: int, count: int) -> PagedStep:
    return PagedStep(
        pool, table, torch.tensor([start], dtype=torch.int32), torch.tensor([count], dtype=torch.int32)
    )


class Dense:
    """Attention over keys and values as they are, 16 bits each, in float32."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = torch.cat([self.keys, k]), torch.cat([self.values, v])
        out = torch.empty_like(q, dtype=torch.float32)
        hidden = torch.ones(len(q), len(keys), dtype=torch.bool).triu_(len(self.keys) + 1)
        for head in range(q.shape[1]):
            shared = head // (q.shape[1] // k.shape[1])
            scores = q[:, head].float() @ keys[:, shared].float().T / q.shape[2] ** 0.5
            out[:, head] = (
                torch.softmax(scores.masked_fill_(hidden, -torch.inf), -1) @ values[:, shared].float()
            )
        return out.type_as(q)


def off(found: Tensor, expected: Tensor) -> float:
    """Give the size of the difference, relative to what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@torch.inference_mode()
def test_a_layer_of_full_width_decodes_at_the_end_of_the_context() -> None:
    """One token, and a chunk of 40, behind 131,000 others, against attention written out.

    Random keys leave each of the 131,072 values a weight of about 1/131,072, so what is left of their sum is
    small, and an error in the weights is seen against that small size.
    """
    generator = torch.Generator().manual_seed(0)
    layer = DecoderLayer(WIDE, lambda i, o: torch.nn.Linear(i, o, bias=False)).bfloat16()
    for parameter in layer.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
    held = CONTEXT - 40
    pool, table, keys, values = filled(held, generator)
    for count in (1, 40):
        x = torch.randn(count, WIDE.dim, generator=generator).bfloat16()
        rotary = rotary_1d(torch.arange(held, held + count), WIDE.head_dim, WIDE.rope_theta)
        parts: list[Tensor] = []

        def both(
            index: int, q: Tensor, k: Tensor, v: Tensor, count: int = count, parts: list[Tensor] = parts
        ) -> Tensor:
            parts += [step(pool, table, held, count)(index, q, k, v), Dense(keys, values)(index, q, k, v)]
            return parts[0]

        found = layer(0, x, *rotary, both)
        expected = layer(0, x, *rotary, Dense(keys, values))
        assert off(parts[0], parts[1]) < 0.03
        assert off(found, expected) < 0.01


@torch.inference_mode()
def test_every_place_of_the_context_can_be_found() -> None:
    """Each key head has one token that its queries look for; the answer is that token's value."""
    generator = torch.Generator().manual_seed(1)
    pool, table, keys, values = filled(CONTEXT - 1, generator)
    places = [0, 15, 16, 4095, 65_535, 65_536, CONTEXT - 17, CONTEXT - 2]
    heads = torch.arange(WIDE.n_kv_heads)
    wanted = keys[torch.tensor(places), heads].float()  # [kv_heads, head_dim]
    groups = WIDE.n_heads // WIDE.n_kv_heads
    q = (3 * wanted).repeat_interleave(groups, 0)[None].bfloat16()
    own = torch.zeros(1, WIDE.n_kv_heads, WIDE.head_dim).bfloat16()
    found = step(pool, table, CONTEXT - 1, 1)(0, q, own, own)[0].unflatten(0, (-1, groups))
    for head, place in enumerate(places):
        for row in found[head]:
            assert off(row, values[place, head]) < 0.05


def memory(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/clear_refs to measure a peak")
@torch.inference_mode()
def test_a_chunk_at_the_end_of_the_context_needs_little_scratch() -> None:
    """512 queries times 131,072 keys times 32 heads are 8.6 GB of float32 scores, never all there at once."""
    generator = torch.Generator().manual_seed(2)
    pool, table, _, _ = filled(CONTEXT - 512, generator)
    q = torch.randn(512, WIDE.n_heads, WIDE.head_dim, generator=generator).bfloat16()
    k, v = torch.randn(2, 512, WIDE.n_kv_heads, WIDE.head_dim, generator=generator).bfloat16()
    attend = step(pool, table, CONTEXT - 512, 512)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    out = attend(0, q, k, v)
    assert bool(out.isfinite().all())
    assert memory("VmHWM") - before < 600 << 20


def test_a_prompt_as_long_as_the_context_goes_through_the_engine() -> None:
    """131,070 tokens and an answer of two, in chunks, on a narrow layer, against a pass without a cache."""
    config = random_config(4, context=CONTEXT)
    narrow: DecoderConfig = replace(
        config.decoder, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, ffn_dim=32, rope_theta=1e6
    )
    config = replace(config, decoder=narrow)
    tensors = random_tensors(config, 4)
    decoder = Decoder(narrow)
    names = {name: name.removeprefix("language_model.").removeprefix("model.") for name in tensors}
    chosen = {names[name]: tensor for name, tensor in tensors.items() if name.startswith("language_model.")}
    decoder.load_state_dict(chosen, strict=True)
    decoder.requires_grad_(False)
    vision = TorchVision(build_encoder(config, tensors))
    words = random_text(0, CONTEXT)
    prompt = make_prompt(config.vision, words[: CONTEXT - 2])
    bounds = {16: 1e-4, 8: 0.02}
    for bits, bound in bounds.items():
        options = EngineOptions(kv_bits=bits, prefill_chunk=2048, cache_tokens=CONTEXT)
        engine = Engine(config, decoder, vision, CPU, torch.float32, frozenset(), options)
        found = forced_logits(engine, prompt, words[CONTEXT - 2 :])
        check_books(engine)
        if bits == 16:
            whole = make_prompt(config.vision, words[: CONTEXT - 1])
            with torch.inference_mode():
                expected = whole_logits(engine, embed(engine, whole))[-2:]
        assert float((found - expected).abs().max()) < bound * float(expected.std())
