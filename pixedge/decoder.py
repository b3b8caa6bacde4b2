"""The Mistral decoder: the one definition that export calibrates and run executes.

Tokens of all sequences lie side by side in one dimension, so that every linear is one matrix product.
Only attention needs to know which token belongs to which sequence; it is an argument (see ``Attend``).
Module names follow Hugging Face's, so a canonical tensor's name is its place here.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixedge.config import DecoderConfig
from pixedge.rope import apply_rotary, rotary_1d

LinearFactory = Callable[[int, int], nn.Module]
"""Makes a linear from (in_features, out_features): float [tokens, in] -> [tokens, out]."""


class Attend(Protocol):
    """What attention needs to know beyond this step's tokens: a KV cache, or a mask over whole sequences."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with this step's q over its own and earlier k and v.

        q is [tokens, heads, head_dim], k and v are [tokens, kv_heads, head_dim]; the result is shaped like q.
        """
        ...


class Fused(Protocol):
    """A faster way through a whole layer, for the steps that it takes."""

    def takes(self, x: Tensor, attend: Attend) -> bool:
        """Tell whether a step is for it."""
        ...

    def __call__(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Any) -> Tensor:
        """Do what ``DecoderLayer.forward`` does."""
        ...


def dense(in_features: int, out_features: int) -> nn.Module:
    """Make a linear with an ordinary weight [out, in] and no bias."""
    return nn.Linear(in_features, out_features, bias=False)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., dim]."""
        normed = functional.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
        return normed.type_as(x) * self.weight


class Attention(nn.Module):
    """Grouped-query attention: n_heads queries share n_kv_heads keys and values."""

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = linear(config.dim, config.n_heads * config.head_dim)
        self.k_proj = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.v_proj = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.o_proj = linear(config.n_heads * config.head_dim, config.dim)

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Map x [tokens, dim] to [tokens, dim]; cos and sin are [tokens, head_dim / 2]."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim))  # [tokens, heads or kv_heads, head_dim]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = attend(layer, apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v)
        out: Tensor = self.o_proj(attended.flatten(-2))
        return out


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, ffn_dim: int, linear: LinearFactory) -> None:
        super().__init__()
        self.gate_proj = linear(dim, ffn_dim)
        self.up_proj = linear(dim, ffn_dim)
        self.down_proj = linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., dim] to [..., dim]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each after a norm and added to the residual stream.

    fused: set while loading where a kernel runs the whole layer; what it does not take goes the plain way.
    """

    def __init__(self, config: DecoderConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, linear)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config.dim, config.ffn_dim, linear)
        self.fused: Fused | None = None

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Map the residual stream x [tokens, dim] to [tokens, dim]."""
        if self.fused is not None and self.fused.takes(x, attend):
            return self.fused(layer, x, cos, sin, attend)
        x = x + self.self_attn(layer, self.input_layernorm(x), cos, sin, attend)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Token embeddings, layers, final norm and output head."""

    def __init__(
        self, config: DecoderConfig, linear: LinearFactory = dense, head: LinearFactory = dense
    ) -> None:
        super().__init__()
        self.config = config
        # Zeros until a checkpoint fills them: Embedding's own random draw, on the meta device, would import
        # torch's compiler, which takes most of a second of every load.
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.dim, _weight=torch.zeros(config.vocab_size, config.dim)
        )
        self.layers = nn.ModuleList(DecoderLayer(config, linear) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = head(config.dim, config.vocab_size)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [tokens, head_dim / 2] for positions [tokens]."""
        return rotary_1d(positions, self.config.head_dim, self.config.rope_theta)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run all layers over embeddings x [tokens, dim] at integer positions [tokens].

        Return normalised hidden states [tokens, dim]; ``lm_head`` turns those that are wanted into logits.
        """
        cos, sin = self.rotary(positions)
        for index, layer in enumerate(self.layers):
            x = layer(index, x, cos, sin, attend)
        out: Tensor = self.norm(x)
        return out


class WholeSequences:
    """Causal attention inside equally long sequences, without a cache.

    For training, calibration and tests.
    """

    def __init__(self, length: int) -> None:
        """Treat every ``length`` tokens of a step as one sequence."""
        self.length = length

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as ``Attend`` says."""
        tokens, heads, head_dim = q.shape
        groups = heads // k.shape[1]
        q, k, v = (t.view(-1, self.length, t.shape[1], head_dim).transpose(1, 2) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), is_causal=True
        )
        return out.transpose(1, 2).reshape(tokens, heads, head_dim)
