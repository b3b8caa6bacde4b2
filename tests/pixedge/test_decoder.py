"""The decoder against transformers' LLaVA, from both checkpoint layouts, on text and on pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from pixedge.config import ModelConfig
from pixedge.decoder import Decoder, WholeSequences
from pixedge.engine import Engine
from pixedge.tokenizer import Prompt
from pixedge_export.checkpoint import Layout, open_checkpoint, save_checkpoint
from tests.engines import embed
from tests.random_models import (
    CPU,
    TorchVision,
    build_decoder,
    build_encoder,
    make_prompt,
    quantizable_config,
    quantize_decoder,
    random_config,
    random_pixels,
    random_tensors,
    random_text,
)

BOUND = 1e-4
SEEDS = range(24)


def make_prompts(config: ModelConfig, seed: int) -> list[Prompt]:
    """Text only; one picture in the middle; two pictures of different sizes, one of them at the end."""
    words = [random_text(100 * seed + part, 3 + seed % 7) for part in range(4)]
    wide = random_pixels(config.vision, 2, 5, seed)
    tall = random_pixels(config.vision, 4, 1 + seed % 3, seed + 1)
    return [
        make_prompt(config.vision, [1], words[0], words[1], words[2]),
        make_prompt(config.vision, [1], words[0], wide, words[1]),
        make_prompt(config.vision, [1], tall, words[2], wide, words[3], tall),
    ]


def load_engine(folder: Path) -> Engine:
    """Join decoder and encoder from a checkpoint by the tensors' canonical names."""
    checkpoint = open_checkpoint(folder)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    config = checkpoint.config
    vision = TorchVision(build_encoder(config, tensors))
    return Engine(config, build_decoder(config, tensors), vision, CPU, torch.float32, frozenset())


@torch.no_grad()
def all_logits(engine: Engine, prompt: Prompt) -> Tensor:
    """Return the logits [tokens, vocab] behind every token of a prompt."""
    x = embed(engine, prompt)
    hidden = engine.decoder(x, torch.arange(len(x)), WholeSequences(len(x)))
    logits: Tensor = engine.decoder.lm_head(hidden)
    return logits


@torch.no_grad()
def judge_logits(judge: LlavaForConditionalGeneration, prompt: Prompt) -> Tensor:
    """Let transformers read the same ids and pictures, padded to one batch as its processor does."""
    ids = torch.tensor([prompt.ids])
    if not prompt.images:
        return judge(input_ids=ids).logits[0]
    sizes = [image.shape[1:] for image in prompt.images]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    batch = np.zeros((len(sizes), 3, height, width), np.float32)
    for row, image in zip(batch, prompt.images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return judge(input_ids=ids, pixel_values=torch.from_numpy(batch), image_sizes=torch.tensor(sizes)).logits[
        0
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_equal_transformers_from_both_layouts(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    tensors = random_tensors(config, seed)
    engines: dict[Layout, Engine] = {}
    for layout in ("mistral", "hf"):
        save_checkpoint(tmp_path / layout, config, tensors, layout)
        engines[layout] = load_engine(tmp_path / layout)
    judge = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for prompt in make_prompts(config, seed):
        expected = judge_logits(judge, prompt)
        assert expected.std() > 0.3  # else the bound would say little
        for layout, engine in engines.items():
            found = all_logits(engine, prompt)
            torch.testing.assert_close(
                found, expected, atol=BOUND, rtol=0, msg=lambda m, at=layout: f"{at}: {m}"
            )


def test_the_random_geometries_cover_what_differs_between_models() -> None:
    decoders = [random_config(seed).decoder for seed in SEEDS]
    assert any(d.n_heads * d.head_dim > d.dim for d in decoders)
    assert any(d.n_heads * d.head_dim < d.dim for d in decoders)
    assert any(1 < d.n_kv_heads < d.n_heads for d in decoders)
    assert any(d.n_kv_heads == d.n_heads > 1 for d in decoders)
    assert any(d.n_kv_heads == 1 < d.n_heads for d in decoders)
    assert len({d.rope_theta for d in decoders}) > 2 and len({d.norm_eps for d in decoders}) > 2


def test_sequences_side_by_side_equal_each_alone() -> None:
    config = random_config(1)
    decoder = build_decoder(config, random_tensors(config, 1))
    x = torch.randn(3, 7, config.decoder.dim, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7)
    together = decoder(x.flatten(0, 1), positions.repeat(3), WholeSequences(7))
    alone = torch.cat([decoder(one, positions, WholeSequences(7)) for one in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_later_token_changes_nothing_before_it() -> None:
    config = random_config(2)
    decoder = build_decoder(config, random_tensors(config, 2))
    x = torch.randn(9, config.decoder.dim, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[5] += 1
    before, after = (decoder(each, torch.arange(9), WholeSequences(9)) for each in (x, changed))
    difference = (before - after).abs().amax(1)
    assert bool((difference[:5] == 0).all()) and bool((difference[5:] > 1e-4).all())


def test_positions_matter_by_their_distance_only() -> None:
    config = random_config(3)
    decoder = build_decoder(config, random_tensors(config, 3))
    x = torch.randn(6, config.decoder.dim, generator=torch.Generator().manual_seed(0))

    def run(positions: Tensor) -> Tensor:
        return decoder(x, positions, WholeSequences(6))

    torch.testing.assert_close(run(torch.arange(6)), run(torch.arange(100, 106)), atol=1e-3, rtol=0)
    assert (run(torch.arange(6)) - run(2 * torch.arange(6))).abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_quantised_linears_equal_their_dense_weights(dtype: torch.dtype, bound: float) -> None:
    config = quantizable_config()
    decoder = build_decoder(config, random_tensors(config, 4))
    dense = quantize_decoder(decoder, dtype)
    x = torch.randn(11, config.decoder.dim, generator=torch.Generator().manual_seed(0))

    def logits(model: Decoder, x: Tensor) -> Tensor:
        return model.lm_head(model(x, torch.arange(11), WholeSequences(11))).float()

    expected = logits(dense, x)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(decoder, x.to(dtype)), expected, atol=bound, rtol=0)
