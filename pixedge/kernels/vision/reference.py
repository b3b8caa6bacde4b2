"""What the vision encoder's kernels compute, in torch, as the formulas read."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from pixedge.rope import apply_rotary


@dataclass(frozen=True)
class EncoderLayerWeights:
    """A layer's weights as stored, float16: norms [dim], matrices [out, in], in the order that C reads."""

    attention_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    ffn_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    def tensors(self) -> list[Tensor]:
        """List the weights in order."""
        return [getattr(self, field.name) for field in fields(self)]


def attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attend from every patch to every patch: q, k, v [patches, heads, head_dim] -> the same.

    cos, sin: [patches, head_dim / 2].
    """
    q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
    scores = torch.einsum("phd,rhd->hpr", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hpr,rhd->phd", scores.softmax(-1), v)


def encoder_layer(
    x: Tensor, cos: Tensor, sin: Tensor, weights: EncoderLayerWeights, heads: int, eps: float
) -> Tensor:
    """Map the residual stream x float32 [patches, dim] to the next: attention, then gated feed-forward."""
    attention_norm, q, k, v, out, ffn_norm, gate, up, down = (weight.float() for weight in weights.tensors())
    normed = functional.rms_norm(x, x.shape[1:], attention_norm, eps)
    q, k, v = (functional.linear(normed, weight).view(len(x), heads, -1) for weight in (q, k, v))
    x = x + functional.linear(attention(q, k, v, cos, sin).flatten(1), out)
    normed = functional.rms_norm(x, x.shape[1:], ffn_norm, eps)
    hidden = functional.silu(functional.linear(normed, gate)) * functional.linear(normed, up)
    return x + functional.linear(hidden, down)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Map x float32 [rows, in] to [rows, out], through x Phi(x) with ``gelu``."""
    out = functional.linear(x, weight.float(), None if bias is None else bias.float())
    return functional.gelu(out) if gelu else out
