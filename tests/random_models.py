"""Small random Pixtrals: geometry from a seed, weights large enough that every part matters to the output.

The decoder and the encoder that run, the prompts they take, and an engine that joins them without an export.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.decoder import Decoder, DecoderLayer
from pixedge.engine import Engine
from pixedge.kernels.cpu.fused_layer import fuse
from pixedge.kernels.int8 import quantize_rows
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.packing import QuantizedWeight, dequantize
from pixedge.tokenizer import Prompt
from pixedge_export.checkpoint import expected_shapes
from pixedge_export.encoder import VisionEncoder, encode

IMG, BREAK, END = 10, 12, 13
CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


def random_config(
    seed: int, vocab_size: int = 48, context: int = 256, patch_size: int | None = None
) -> ModelConfig:
    """Draw a geometry: grouped heads, heads * head_dim that is rarely dim, uneven widths."""
    rng = random.Random(seed)
    n_kv_heads = rng.randint(1, 3)
    patch = patch_size or rng.choice((4, 8, 14, 16))
    vision_heads, vision_head_dim = rng.randint(1, 4), rng.choice((4, 8, 12, 16))
    decoder = DecoderConfig(
        dim=rng.randint(4, 48),
        n_layers=rng.randint(1, 4),
        n_heads=n_kv_heads * rng.randint(1, 4),
        n_kv_heads=n_kv_heads,
        head_dim=2 * rng.randint(2, 12),
        ffn_dim=rng.randint(5, 80),
        vocab_size=vocab_size,
        norm_eps=rng.choice((1e-6, 1e-5, 1e-3)),
        rope_theta=rng.choice((100.0, 1e4, 1e6, 1e9)),
        context=context,
    )
    vision = VisionConfig(
        dim=vision_heads * vision_head_dim,
        n_layers=rng.randint(1, 3),
        n_heads=vision_heads,
        ffn_dim=rng.randint(5, 60),
        n_channels=3,
        patch_size=patch,
        image_size=patch * 8,
        rope_theta=rng.choice((100.0, 1e4)),
        norm_eps=1e-5,
        image_token_id=IMG,
        image_break_token_id=BREAK,
        image_end_token_id=END,
    )
    return ModelConfig(decoder, vision)


def random_tensors(config: ModelConfig, seed: int) -> Tensors:
    """Draw every canonical tensor, float32: norms around 1, embeddings of size 1, linears that keep size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        tensor = torch.randn(shape, generator=generator)
        if name.endswith(".bias"):
            tensor *= 0.3
        elif len(shape) == 1:
            tensor = 1 + 0.3 * tensor
        elif "embed_tokens" not in name:
            tensor *= tensor[0].numel() ** -0.5
        tensors[name] = tensor
    return tensors


def decoder_name(canonical: str) -> str:
    """Give a canonical tensor's place inside Decoder."""
    return canonical.removeprefix("language_model.").removeprefix("model.")


def build_decoder(config: ModelConfig, tensors: Tensors) -> Decoder:
    decoder = Decoder(config.decoder)
    chosen = {decoder_name(name): t for name, t in tensors.items() if name.startswith("language_model.")}
    decoder.load_state_dict(chosen, strict=True)
    return decoder.requires_grad_(False)


def build_encoder(config: ModelConfig, tensors: Tensors) -> VisionEncoder:
    encoder = VisionEncoder(config)
    encoder.load_state_dict(
        {name: t for name, t in tensors.items() if not name.startswith("language_model.")}, strict=True
    )
    return encoder.requires_grad_(False)


def quantizable_config() -> ModelConfig:
    """Draw a geometry, then give the decoder widths that are multiples of the group size of 32."""
    config = random_config(4)
    widths = {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 24, "ffn_dim": 96, "n_layers": 2}
    return replace(config, decoder=replace(config.decoder, **widths))


def quantize_decoder(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """Put random 4-bit linears and an 8-bit head in place, for activations of dtype.

    Return a float32 decoder whose dense weights are the values that those stand for.
    """
    dense = Decoder(decoder.config).requires_grad_(False)
    dense.load_state_dict(decoder.state_dict())
    decoder.to(dtype)  # before there are packed weights, whose parts keep their own types
    generator = torch.Generator().manual_seed(9)
    for layer, dense_layer in zip(decoder.layers, dense.layers, strict=True):
        for name, linear in list(layer.named_modules()):
            if isinstance(linear, nn.Linear):
                shape = (linear.out_features, linear.in_features)
                q = torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator)
                scales = 0.02 + 0.02 * torch.rand(shape[0], shape[1] // 32, generator=generator)
                weight = QuantizedWeight(q, scales.bfloat16().float(), 32)
                layer.set_submodule(name, Int4Linear(weight, dtype, CPU))
                dense_layer.get_submodule(name).weight.copy_(dequantize(weight, torch.float32))
    head = Int8Linear(dense.lm_head.weight, dtype, CPU)
    rounded, scales = quantize_rows(dense.lm_head.weight)
    dense.lm_head.weight.copy_(rounded.float() * scales.float()[:, None])
    decoder.lm_head = head
    fuse([layer for layer in decoder.layers if isinstance(layer, DecoderLayer)])
    return dense


@dataclass
class TorchVision:
    """The torch encoder where the runtime has an ONNX session; keeps what it was asked to encode."""

    encoder: VisionEncoder
    asked: list[np.ndarray] = field(default_factory=list)

    def encode(self, pixels: np.ndarray) -> Tensor:
        self.asked.append(pixels)
        return encode(self.encoder, torch.from_numpy(pixels))


def random_engine(
    seed: int, context: int = 256, stop_ids: frozenset[int] = frozenset(), vocab_size: int = 48
) -> Engine:
    """Build an engine in float32 on a random model, its encoder in torch."""
    config = random_config(seed, vocab_size=vocab_size, context=context)
    tensors = random_tensors(config, seed)
    vision = TorchVision(build_encoder(config, tensors))
    return Engine(config, build_decoder(config, tensors), vision, CPU, torch.float32, stop_ids)


def random_pixels(vision: VisionConfig, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Draw a picture of rows x columns patches, float32 [3, H, W]."""
    shape = (3, rows * vision.patch_size, columns * vision.patch_size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def random_text(seed: int, count: int, vocab_size: int = 48) -> list[int]:
    """Draw ids that are no image tokens."""
    return random.Random(seed).choices(range(14, vocab_size), k=count)


def make_prompt(vision: VisionConfig, *parts: Sequence[int] | np.ndarray) -> Prompt:
    """Join lists of ids and pictures, each picture with the ids that stand for its patches."""
    ids: list[int] = []
    images: list[np.ndarray] = []
    for part in parts:
        if isinstance(part, np.ndarray):
            rows, columns = (side // vision.patch_size for side in part.shape[1:])
            ids += ([IMG] * columns + [BREAK]) * rows
            ids[-1] = END
            images.append(part)
        else:
            ids += part
    return Prompt(tuple(ids), tuple(images), ids.count(IMG))
