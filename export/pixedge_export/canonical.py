"""The canonical tensors of a Pixtral: names, shapes, Mistral's names for them, and the order of rotary rows.

Canonical names are those of the Hugging Face hub's LlavaForConditionalGeneration checkpoints; query and key
rows are ordered for half-split rotary pairs, where Mistral's are ordered for interleaved ones.
"""

import re

import torch

from pixedge.config import ModelConfig

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


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Give every canonical tensor's shape, in the canonical order: decoder, vision tower, projector."""
    text, eye = config.decoder, config.vision
    query, key = text.n_heads * text.head_dim, text.n_kv_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (text.vocab_size, text.dim)
    }
    for index in range(text.n_layers):
        layer = f"language_model.model.layers.{index}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (query, text.dim),
            f"{layer}.self_attn.k_proj.weight": (key, text.dim),
            f"{layer}.self_attn.v_proj.weight": (key, text.dim),
            f"{layer}.self_attn.o_proj.weight": (text.dim, query),
            f"{layer}.mlp.gate_proj.weight": (text.ffn_dim, text.dim),
            f"{layer}.mlp.up_proj.weight": (text.ffn_dim, text.dim),
            f"{layer}.mlp.down_proj.weight": (text.dim, text.ffn_dim),
            f"{layer}.input_layernorm.weight": (text.dim,),
            f"{layer}.post_attention_layernorm.weight": (text.dim,),
        }
    shapes["language_model.model.norm.weight"] = (text.dim,)
    shapes["language_model.lm_head.weight"] = (text.vocab_size, text.dim)
    shapes["vision_tower.patch_conv.weight"] = (eye.dim, eye.n_channels, eye.patch_size, eye.patch_size)
    shapes["vision_tower.ln_pre.weight"] = (eye.dim,)
    for index in range(eye.n_layers):
        layer = f"vision_tower.transformer.layers.{index}"
        shapes |= {f"{layer}.attention.{part}_proj.weight": (eye.dim, eye.dim) for part in "qkvo"}
        shapes |= {
            f"{layer}.feed_forward.gate_proj.weight": (eye.ffn_dim, eye.dim),
            f"{layer}.feed_forward.up_proj.weight": (eye.ffn_dim, eye.dim),
            f"{layer}.feed_forward.down_proj.weight": (eye.dim, eye.ffn_dim),
            f"{layer}.attention_norm.weight": (eye.dim,),
            f"{layer}.ffn_norm.weight": (eye.dim,),
        }
    return shapes | {
        "multi_modal_projector.linear_1.weight": (text.dim, eye.dim),
        "multi_modal_projector.linear_1.bias": (text.dim,),
        "multi_modal_projector.linear_2.weight": (text.dim, text.dim),
        "multi_modal_projector.linear_2.bias": (text.dim,),
    }


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
