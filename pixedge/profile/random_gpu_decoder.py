"""Random weights as the GPU's kernels hold them, and what only they have; imports triton."""

from dataclasses import replace

import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.gpu_decoder import GpuDecoder
from pixedge.gpu_runner import GpuRunner
from pixedge.kernels.cuda.choosing import Rule
from pixedge.kernels.cuda.step import StepWeights
from pixedge.packing import GptqWeight
from pixedge.profile.random_decoder import RandomWeights
from pixedge.runner import Runner
from pixedge.stored_weights import linear_shapes


def random_gpu_decoder(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> GpuDecoder:
    """Build a decoder as ``load_gpu_decoder`` does; its embeddings stay on the host, as windows."""
    drawn, shapes = RandomWeights(config), linear_shapes(config)

    def linear(name: str) -> GptqWeight:
        outputs, inputs = shapes[name.rpartition(".")[2].removesuffix("_proj")]
        found = drawn.linear(inputs, outputs)
        return replace(found, words=found.words.to(device), scales=found.scales.to(device))

    head = torch.randint(-127, 128, (config.vocab_size, config.dim), dtype=torch.int8, device=device)
    scale = 1 / (73 * config.dim**0.5)  # 73: standard deviation of the values
    scales = torch.full((config.vocab_size,), scale, dtype=torch.bfloat16, device=device)
    weights = StepWeights.assemble(
        config,
        linear,
        lambda name: torch.ones(config.dim, dtype=dtype, device=device),
        (head, scales),
        None,
    )
    return GpuDecoder(config, weights, drawn.embeddings(dtype))


def choose_on_gpu(runner: Runner, hidden: Tensor) -> None:
    """Make logits of hidden states [answers, dim] and choose a token from each, as a step ends."""
    assert isinstance(runner, GpuRunner)
    runner.passes.head(hidden, range(len(hidden)), [Rule()] * len(hidden))
