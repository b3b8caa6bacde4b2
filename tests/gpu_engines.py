"""Engines on the GPU kernels, in the interpreter where there is no GPU; the same weights in float32."""

import dataclasses
from dataclasses import dataclass

import torch

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.decoder import Decoder, RMSNorm
from pixedge.engine import Engine, EngineOptions
from pixedge.gpu_decoder import GpuDecoder
from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.step import StepWeights
from pixedge.kernels.int8 import quantize_rows
from pixedge.packing import QuantizedWeight, dequantize
from tests.random_models import CPU, TorchVision, build_encoder, random_config, random_tensors

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda:0")
SIZES = {"dim": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "ffn_dim": 64}
CONTEXT = 256


@dataclass(frozen=True)
class Pair:
    """One random model twice: on the kernels, and in float32 on the CPU without an export."""

    gpu: Engine
    exact: Engine


def small_config(layers: int = 1) -> ModelConfig:
    config = random_config(4, vocab_size=90, context=CONTEXT)
    decoder = dataclasses.replace(config.decoder, **SIZES, n_layers=layers, rope_theta=1e4, norm_eps=1e-5)
    return dataclasses.replace(config, decoder=decoder)


def random_weights(
    config: DecoderConfig, dtype: torch.dtype, *, on_device: bool = True, kind: str = "own"
) -> tuple[GpuDecoder, Decoder]:
    """Draw a model; kind "own" is symmetric and in order, "imported" has zero points and an order."""
    g = torch.Generator().manual_seed(0)
    dense = Decoder(config).requires_grad_(False)
    orders: dict[int, torch.Tensor] = {}

    def linear(name: str) -> QuantizedWeight:
        outputs, inputs = dense.get_submodule(name).weight.shape
        q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=g)
        scales = (0.5 + torch.rand(outputs, inputs // 32, generator=g)) * 0.25 / inputs**0.5
        zeros = order = None
        if kind == "imported":
            zeros = torch.randint(6, 11, scales.shape, dtype=torch.uint8, generator=g)
            order = orders.setdefault(inputs, torch.randperm(inputs, generator=g))
        found = QuantizedWeight(q, scales.half().float(), 32, zeros, order)
        dense.get_submodule(name).weight.copy_(dequantize(found, torch.float32))
        return found

    norms = {}
    for name, module in dense.named_modules():
        if isinstance(module, RMSNorm):
            norms[name] = (1 + 0.1 * torch.randn(config.dim, generator=g)).to(DEVICE, dtype)
            module.weight.copy_(norms[name].float())
    head, scales = quantize_rows(torch.randn(config.vocab_size, config.dim, generator=g) / 4)
    dense.lm_head.weight.copy_(head.float() * scales.float()[:, None])
    table = torch.randn(config.vocab_size, config.dim, generator=g).bfloat16()
    dense.embed_tokens.weight.copy_(table.to(dtype).float())
    weights = StepWeights.assemble(
        config,
        linear,
        norms.__getitem__,
        (head.to(DEVICE), scales.to(DEVICE)),
        table.to(DEVICE, dtype) if on_device else None,
    )
    capture = None if DEVICE.type == "cuda" else lambda step: step
    return GpuDecoder(config, weights, None if on_device else table, capture), dense


def random_pair(
    dtype: torch.dtype = torch.float16,
    *,
    on_device: bool = True,
    kind: str = "own",
    layers: int = 1,
    **options: object,
) -> Pair:
    """Make both engines; options are the engine's."""
    config = small_config(layers)
    decoder, dense = random_weights(config.decoder, dtype, on_device=on_device, kind=kind)
    vision = TorchVision(build_encoder(config, random_tensors(config, 4)))
    chosen = EngineOptions(
        **{"kv_bits": 16, "cache_tokens": 512, "prefill_chunk": 64, "max_requests": 2, **options}
    )
    return Pair(
        Engine(config, decoder, vision, DEVICE, dtype, frozenset(), chosen),
        Engine(config, dense, vision, CPU, torch.float32, frozenset(), chosen),
    )
