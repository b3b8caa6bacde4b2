"""A decoder of random 4-bit weights in a real shape: as fast and as large as one that was trained."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pixedge.config import DecoderConfig
from pixedge.decoder import Decoder, DecoderLayer
from pixedge.kernels.cpu.fused_layer import fuse
from pixedge.kernels.cuda import available
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.packing import GptqWeight

if TYPE_CHECKING:
    from pixedge.gpu_decoder import GpuDecoder

GROUP_SIZE = 128


class RandomWeights:
    """Draws weights, another one each time, so that no cache holds them all."""

    def __init__(self, config: DecoderConfig) -> None:
        """Begin always alike."""
        self.config = config
        self._generator = torch.Generator().manual_seed(0)

    def linear(self, in_features: int, out_features: int) -> GptqWeight:
        """Draw a 4-bit weight whose product keeps the size of what it multiplies."""
        assert in_features % GROUP_SIZE == 0, f"{in_features} inputs in groups of {GROUP_SIZE}"
        words = torch.empty(in_features // 8, out_features, dtype=torch.int32)
        words.random_(-(2**31), 2**31 - 1, generator=self._generator)
        # 4.6: standard deviation of the values
        scale = torch.tensor(1 / (4.6 * in_features**0.5)).bfloat16().half()
        scales = scale.expand(in_features // GROUP_SIZE, out_features).contiguous()
        return GptqWeight(words, scales, GROUP_SIZE)

    def head(self) -> Tensor:
        """Draw an output head, bfloat16 [vocabulary, dim]."""
        head = torch.empty(self.config.vocab_size, self.config.dim, dtype=torch.bfloat16)
        return head.normal_(0, self.config.dim**-0.5, generator=self._generator)

    def embeddings(self, dtype: torch.dtype) -> Tensor:
        """Draw rows [vocabulary, dim] that take no memory to speak of: row i is a window from i on.

        A folder's embeddings stay in its mapped file, of which a process holds the rows that it reads.
        """
        rows, width = self.config.vocab_size, self.config.dim
        drawn = torch.empty(rows + width).normal_(0, 1, generator=self._generator).to(dtype)
        return drawn.as_strided((rows, width), (1, 1))


def random_any_decoder(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> "Decoder | GpuDecoder":
    """Build a decoder for what ``pixedge.load`` would run on the device."""
    if dtype.itemsize == 2 and available(device):
        from pixedge.profile.random_gpu_decoder import random_gpu_decoder

        return random_gpu_decoder(config, dtype, device)
    return random_decoder(config, dtype, device)


def random_decoder(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Build a decoder as ``load_decoder`` does: 4-bit linears, 8-bit head."""
    drawn = RandomWeights(config)

    def linear(in_features: int, out_features: int) -> nn.Module:
        return Int4Linear(drawn.linear(in_features, out_features), dtype, device)

    # Built with one token and no head: embeddings and a 16-bit head would only take memory.
    decoder = Decoder(replace(config, n_layers=1, vocab_size=1), linear, lambda i, o: nn.Identity())
    layers = [DecoderLayer(config, linear) for _ in range(config.n_layers)]
    decoder.layers = nn.ModuleList(layers)
    decoder.config = config
    for norm in decoder.parameters():  # weights keep their own types
        norm.data = norm.data.to(device, dtype)
    fuse(layers)
    decoder.lm_head = Int8Linear(drawn.head(), dtype, device)
    rows = drawn.embeddings(dtype).to(device)
    decoder.embed_tokens = nn.Embedding(config.vocab_size, config.dim, _weight=rows)
    return decoder.eval().requires_grad_(False)
