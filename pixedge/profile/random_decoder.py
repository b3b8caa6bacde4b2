"""A decoder of random 4-bit weights in a real shape: as fast and as large as one that was trained."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pixedge.config import DecoderConfig
from pixedge.decoder import Decoder, DecoderLayer
from pixedge.kernels.cpu.fused_layer import fuse
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.packing import GptqWeight

GROUP_SIZE = 128


def random_decoder(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Build a decoder as ``pixedge.load`` does: 4-bit linears, 8-bit head.

    Weights differ from layer to layer, so that no cache holds them all. On a CPU, where a folder's embeddings
    stay in their file, these take no memory either: row i is the window from i on of one drawn tensor.
    """
    generator = torch.Generator().manual_seed(0)

    def linear(in_features: int, out_features: int) -> nn.Module:
        words = torch.empty(in_features // 8, out_features, dtype=torch.int32)
        words.random_(-(2**31), 2**31 - 1, generator=generator)
        assert in_features % GROUP_SIZE == 0, f"{in_features} inputs in groups of {GROUP_SIZE}"
        # 4.6: standard deviation of the values, so that a product keeps the size of what it multiplies
        scale = torch.tensor(1 / (4.6 * in_features**0.5)).bfloat16().half()
        scales = scale.expand(in_features // GROUP_SIZE, out_features).contiguous()
        return Int4Linear(GptqWeight(words, scales, GROUP_SIZE), dtype, device)

    # Built with one token and no head: embeddings and a 16-bit head would only take memory.
    decoder = Decoder(replace(config, n_layers=1, vocab_size=1), linear, lambda i, o: nn.Identity())
    layers = [DecoderLayer(config, linear) for _ in range(config.n_layers)]
    decoder.layers = nn.ModuleList(layers)
    decoder.config = config
    for norm in decoder.parameters():  # weights keep their own types
        norm.data = norm.data.to(device, dtype)
    fuse(layers)
    head = torch.empty(config.vocab_size, config.dim, dtype=torch.bfloat16)
    head.normal_(0, config.dim**-0.5, generator=generator)
    decoder.lm_head = Int8Linear(head, dtype, device)
    rows = _windows(config, dtype, generator)
    if device.type != "cpu":
        rows = rows.to(device).contiguous()
    decoder.embed_tokens = nn.Embedding(config.vocab_size, config.dim, _weight=rows)
    return decoder.eval().requires_grad_(False)


def _windows(config: DecoderConfig, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw rows [vocabulary, dim] that share their memory."""
    drawn = torch.empty(config.vocab_size + config.dim).normal_(0, 1, generator=generator).to(dtype)
    return drawn.as_strided((config.vocab_size, config.dim), (1, 1))
