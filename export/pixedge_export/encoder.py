"""The Pixtral vision encoder and adapter in torch: the reference that the ONNX graphs must agree with.

Each picture is encoded alone, so patches of different pictures can never attend to each other.
Module names follow Hugging Face's, so a canonical tensor's name is its place here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixedge.config import ModelConfig, VisionConfig
from pixedge.decoder import FeedForward, RMSNorm, dense
from pixedge.rope import apply_rotary, rotary_2d


class EncoderAttention(nn.Module):
    """Multi-head attention: every patch of a picture sees every other, and none of another picture."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = dense(config.dim, config.dim)
        self.k_proj = dense(config.dim, config.dim)
        self.v_proj = dense(config.dim, config.dim)
        self.o_proj = dense(config.dim, config.dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x [batch, patches, dim] to [batch, patches, dim]."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [batch, heads, patches, head_dim]
        attended = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(-2))
        return out


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = EncoderAttention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim, dense)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map the residual stream x [batch, patches, dim] to [batch, patches, dim]."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class VisionTower(nn.Module):
    """Patches, layers; no class token and no final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_conv = nn.Conv2d(
            config.n_channels, config.dim, config.patch_size, stride=config.patch_size, bias=False
        )
        self.ln_pre = RMSNorm(config.dim, config.norm_eps)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [batch, 3, H, W] to features [batch, H/patch * W/patch, dim]."""
        patches = self.patch_conv(pixels)  # [batch, dim, rows, columns]
        rows, columns = patches.shape[-2:]
        cos, sin = rotary_2d(rows, columns, self.config.head_dim, self.config.rope_theta, pixels.device)
        x: Tensor = self.ln_pre(patches.flatten(2).transpose(1, 2))
        layers = self.transformer.layers
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, cos, sin)
        return x


class Projector(nn.Module):
    """Two biased linears with a GELU between them: from the encoder's width to the decoder's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.vision.dim, config.decoder.dim)
        self.linear_2 = nn.Linear(config.decoder.dim, config.decoder.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [..., vision dim] to embeddings [..., decoder dim]."""
        out: Tensor = self.linear_2(functional.gelu(self.linear_1(x)))
        return out


class VisionEncoder(nn.Module):
    """Vision tower and adapter together: what one ONNX graph computes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = Projector(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [batch, 3, H, W] to embeddings [batch, H/patch * W/patch, decoder dim]."""
        embeddings: Tensor = self.multi_modal_projector(self.vision_tower(pixels))
        return embeddings


@torch.no_grad()
def encode(encoder: VisionEncoder, pixels: Tensor) -> Tensor:
    """Encode one picture, pixels [3, H, W] to embeddings [H/patch * W/patch, decoder dim]."""
    out: Tensor = encoder(pixels[None])[0]
    return out


def load_encoder(config: ModelConfig, tensors: Mapping[str, Tensor]) -> VisionEncoder:
    """Make an encoder that computes in float32 from canonical tensors of any floating type."""
    with torch.device("meta"):
        encoder = VisionEncoder(config)
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return encoder.eval().requires_grad_(False)
