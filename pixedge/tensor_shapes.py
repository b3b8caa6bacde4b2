"""Names and shapes of a Pixtral's tensors, as a checkpoint holds them and as an exported folder does.

Names are those of the Hugging Face hub's LlavaForConditionalGeneration checkpoints.
"""

from pixedge.config import ModelConfig
from pixedge.packing import NIBBLES

Shape = tuple[int, ...]

DECODER = "language_model.model."
HEAD = "language_model.lm_head.weight"


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Give every canonical tensor's shape, in the canonical order: decoder, vision tower, projector."""
    text, eye = config.decoder, config.vision
    query, key = text.n_heads * text.head_dim, text.n_kv_heads * text.head_dim
    shapes: dict[str, Shape] = {f"{DECODER}embed_tokens.weight": (text.vocab_size, text.dim)}
    for index in range(text.n_layers):
        layer = f"{DECODER}layers.{index}"
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
    shapes[f"{DECODER}norm.weight"] = (text.dim,)
    shapes[HEAD] = (text.vocab_size, text.dim)
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


def is_quantized(name: str) -> bool:
    """Tell whether an export stores a canonical tensor in 4 bits: the linears of the decoder's layers."""
    return name.startswith(f"{DECODER}layers.") and name.endswith("_proj.weight")


def exported_shapes(config: ModelConfig, group_size: int) -> dict[str, Shape]:
    """Give every tensor's shape in an exported folder, where four tensors replace each 4-bit weight.

    group_size: inputs that share a scale, -1 for all of them.
    """
    shapes: dict[str, Shape] = {}
    for name, shape in expected_shapes(config).items():
        if not is_quantized(name):
            shapes[name] = shape
            continue
        linear, (out_features, in_features) = name.removesuffix("weight"), shape
        groups = 1 if group_size == -1 else in_features // group_size
        shapes |= {
            f"{linear}qweight": (in_features // NIBBLES, out_features),
            f"{linear}qzeros": (groups, out_features // NIBBLES),
            f"{linear}scales": (groups, out_features),
            f"{linear}g_idx": (in_features,),
        }
    return shapes
