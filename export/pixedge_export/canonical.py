"""The canonical tensors of a Pixtral: Mistral's names for them, and the order of rotary rows.

Canonical names are those of the Hugging Face hub's LlavaForConditionalGeneration checkpoints; query and key
rows are ordered for half-split rotary pairs, where Mistral's are ordered for interleaved ones.
"""

import re

import torch

from pixedge.config import ModelConfig
from pixedge.tensor_shapes import expected_shapes

__all__ = ["expected_shapes", "rotary_heads", "to_half_split", "to_interleaved", "to_mistral_name"]

# Canonical to Mistral: applied in turn, each to the whole name.
_TO_MISTRAL = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^language_model\.model\.embed_tokens\.", "tok_embeddings."),
        (r"^language_model\.lm_head\.", "output."),
        (r"^language_model\.model\.", ""),
        (r"^vision_tower\.", "vision_encoder."),
        (r"^multi_modal_projector\.linear_1\.", "vision_language_adapter.w_in."),
        (r"^multi_modal_projector\.linear_2\.", "vision_language_adapter.w_out."),
        (r"\.(?:self_attn|attention)\.([qkvo])_proj\.", r".attention.w\1."),
        (r"\.(?:mlp|feed_forward)\.gate_proj\.", ".feed_forward.w1."),
        (r"\.(?:mlp|feed_forward)\.down_proj\.", ".feed_forward.w2."),
        (r"\.(?:mlp|feed_forward)\.up_proj\.", ".feed_forward.w3."),
        (r"\.input_layernorm\.", ".attention_norm."),
        (r"\.post_attention_layernorm\.", ".ffn_norm."),
    )
)


def to_mistral_name(name: str) -> str:
    """Translate a canonical tensor name into Mistral's."""
    for pattern, replacement in _TO_MISTRAL:
        name = pattern.sub(replacement, name)
    return name


def to_half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rows from interleaved rotary pairs (0, 1), (2, 3) … to half-split (0, d/2), (1, d/2 + 1) ….

    weight: [heads * head_dim, in]; the result is a contiguous copy. Inverse: to_interleaved.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width)


def to_interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo to_half_split. weight: [heads * head_dim, in]."""
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return halves.transpose(1, 2).reshape(rows, width)


def rotary_heads(name: str, config: ModelConfig) -> int | None:
    """Give the number of heads whose rows rotary pairs order, or None for any other tensor."""
    if not name.endswith((".q_proj.weight", ".k_proj.weight")):
        return None
    if name.startswith("vision_tower."):
        return config.vision.n_heads
    return config.decoder.n_heads if name.endswith(".q_proj.weight") else config.decoder.n_kv_heads
