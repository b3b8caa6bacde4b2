"""Bytes of a model's weights as the runtime holds them, from the geometry alone: nothing is loaded.

The layouts are those of ``pixedge.kernels``; tests compare the figures with what is really allocated.
"""

from typing import Literal

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.kernels.cuda import footprint

Layout = Literal["cuda", "cpu", "torch", "reference"]
"""Of 4-bit weights: Triton's blocks, the C library's lines, torch's operator for the CPU, plain nibbles."""

VisionForm = Literal["float16", "float32", "fused"]
"""Of the encoder: the graph for CUDA, the one for any CPU, and the one of pixedge's own operators."""


def linear_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of each 4-bit linear of a layer."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "q": (queries, config.dim),
        "k": (keys, config.dim),
        "v": (keys, config.dim),
        "o": (config.dim, queries),
        "gate": (config.ffn_dim, config.dim),
        "up": (config.ffn_dim, config.dim),
        "down": (config.dim, config.ffn_dim),
    }


def linear_weights(config: DecoderConfig) -> int:
    """Return how many weights the 4-bit linears of all layers have."""
    return config.n_layers * sum(outs * ins for outs, ins in linear_shapes(config).values())


def linears_bytes(
    config: DecoderConfig, group_size: int, layout: Layout, *, zeros: bool = False, itemsize: int = 2
) -> int:
    """Return the bytes of all layers' 4-bit linears with their scales.

    group_size: inputs that share a scale, -1 for all of a linear. zeros: zero points are kept too, as in an
    imported folder. itemsize: of the activations, which the reference keeps its scales in.
    """
    if layout == "cuda":
        return config.n_layers * sum(
            footprint.int4_bytes(outs, ins, group_size, zeros=zeros)
            for outs, ins in footprint.products(config).values()
        )
    return config.n_layers * sum(
        _packed_bytes(outs, ins, group_size if group_size > 0 else ins, layout, zeros, itemsize)
        for outs, ins in linear_shapes(config).values()
    )


def head_bytes(config: DecoderConfig, layout: Layout) -> int:
    """Return the bytes of the 8-bit output head: a byte a weight, and a scale a row of 2 or 4 bytes."""
    if layout == "cpu":
        rows = -(-config.vocab_size // 16) * 16
        return rows * (config.dim + 4)
    return config.vocab_size * (config.dim + 2)


def norms_bytes(config: DecoderConfig, layout: Layout, itemsize: int = 2) -> int:
    """Return the bytes of the norms; the C library keeps a float32 copy of those of layers."""
    copies = 4 if layout == "cpu" else 0
    return config.dim * (2 * config.n_layers * (itemsize + copies) + itemsize)


def embeddings_bytes(config: DecoderConfig, itemsize: int = 2) -> int:
    """Return the bytes of the token embeddings."""
    return config.vocab_size * config.dim * itemsize


def encoder_weights(config: ModelConfig) -> int:
    """Return how many weights the vision encoder and its adapter have."""
    eye, out = config.vision, config.decoder.dim
    layer = 4 * eye.dim**2 + 3 * eye.dim * eye.ffn_dim + 2 * eye.dim
    patches = (eye.n_channels * eye.patch_size**2 + 1) * eye.dim
    adapter = (eye.dim + out + 2) * out
    return eye.n_layers * layer + patches + adapter


def encoder_bytes(config: ModelConfig, form: VisionForm) -> int:
    """Return the bytes of the encoder's weights in a graph; the fused one packs them as bfloat16."""
    return encoder_weights(config) * (4 if form == "float32" else 2)


def token_bytes(config: DecoderConfig, bits: int, itemsize: int = 2) -> int:
    """Return the bytes of one token's keys and values in all layers.

    bits: 8, with a float16 scale a head, or 16, which is the activations' type of ``itemsize`` bytes.
    """
    width = config.head_dim + 2 if bits == 8 else config.head_dim * itemsize
    return 2 * config.n_layers * config.n_kv_heads * width


def _packed_bytes(outs: int, ins: int, group: int, layout: Layout, zeros: bool, itemsize: int) -> int:
    groups = -(-ins // group)
    if layout == "torch":  # pairs of scale and zero in bfloat16, for groups of at most 256
        part = next((size for size in (256, 128, 64, 32) if group % size == 0), group)
        return outs * ins // 2 + 4 * outs * (ins // part)
    if layout == "cpu":
        return outs * ins // 2 + outs * groups * (3 if zeros else 2)
    return outs * ins // 2 + outs * groups * itemsize * (2 if zeros else 1)
