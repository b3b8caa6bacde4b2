"""Geometries that are known by a name, for what is asked before there is a checkpoint."""

from pixedge.config import PIXTRAL_12B_DECODER, DecoderConfig, ModelConfig, VisionConfig

PIXTRAL_12B = ModelConfig(
    PIXTRAL_12B_DECODER,
    VisionConfig(
        dim=1024,
        n_layers=24,
        n_heads=16,
        ffn_dim=4096,
        n_channels=3,
        patch_size=16,
        image_size=1024,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    ),
)

DEMO = ModelConfig(
    DecoderConfig(
        dim=256,
        n_layers=4,
        n_heads=6,
        n_kv_heads=2,
        head_dim=64,
        ffn_dim=512,
        vocab_size=3072,
        norm_eps=1e-5,
        rope_theta=1e5,
        context=4096,
    ),
    VisionConfig(
        dim=256,
        n_layers=4,
        n_heads=4,
        ffn_dim=384,
        n_channels=3,
        patch_size=16,
        image_size=256,
        rope_theta=1e3,
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    ),
)
SHAPES = {"pixtral-12b": PIXTRAL_12B, "demo": DEMO}
