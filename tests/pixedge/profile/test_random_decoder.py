"""Random weights: finite, as large as planned, and of what the device would run."""

import dataclasses
import importlib.util

import pytest
import torch

from pixedge.decoder import WholeSequences
from pixedge.known_shapes import DEMO
from pixedge.loading import held_layout
from pixedge.profile import random_decoder as module
from pixedge.profile.random_decoder import GROUP_SIZE, random_any_decoder, random_decoder
from pixedge.stored_weights import head_bytes, linears_bytes

CPU = torch.device("cpu")
CONFIG = dataclasses.replace(DEMO.decoder, n_layers=2)


@pytest.fixture(scope="module")
def decoder():
    return random_decoder(CONFIG, torch.bfloat16, CPU)


@torch.inference_mode()
def test_values_keep_their_size_and_tokens_differ(decoder):
    ids = torch.tensor([5, 900, 901])
    x = decoder.embed_tokens(ids)
    assert not torch.equal(x[1], x[2])
    hidden = decoder(x, torch.arange(3), WholeSequences(3))
    logits = decoder.lm_head(hidden).float()
    assert logits.shape == (3, CONFIG.vocab_size) and logits.isfinite().all()
    assert 0.3 < logits.std() < 3


def test_they_take_what_is_planned_and_the_embeddings_nothing(decoder):
    layout = held_layout(torch.bfloat16, CPU, GROUP_SIZE)
    linears = [buffer for name, buffer in decoder.named_buffers() if name.startswith("layers.")]
    assert sum(each.nbytes for each in linears) == linears_bytes(CONFIG, GROUP_SIZE, layout)
    head = decoder.lm_head
    assert head.weight.nbytes + head.scales.nbytes == head_bytes(CONFIG, layout)
    table = decoder.embed_tokens.weight
    assert table.shape == (CONFIG.vocab_size, CONFIG.dim)
    assert table.untyped_storage().nbytes() == 2 * (CONFIG.vocab_size + CONFIG.dim)


def test_layers_differ(decoder):
    one, other = (layer.mlp.up_proj.weight for layer in decoder.layers)
    assert not torch.equal(one, other)


def test_a_gpu_that_has_the_kernels_gets_their_layout(monkeypatch):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from pixedge.gpu_decoder import GpuDecoder

    monkeypatch.setattr(module, "available", lambda device: True)
    decoder = random_any_decoder(CONFIG, torch.float16, CPU)
    assert isinstance(decoder, GpuDecoder)
    weights = decoder.weights
    assert len(weights.layers) == 2 and weights.embeddings is None
    assert weights.head.shape == (CONFIG.vocab_size, CONFIG.dim) and weights.head.dtype == torch.int8
    assert decoder.table.shape == (CONFIG.vocab_size, CONFIG.dim)
    assert weights.norm.dtype == torch.float16
    assert not isinstance(random_any_decoder(CONFIG, torch.float32, CPU), GpuDecoder)
