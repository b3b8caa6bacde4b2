"""A decoder layer over many tokens, a call of the library for each of its parts: what prompts run on.

torch's threads stay out of it: they would go on spinning after each of their parts, on the cores that the
library's threads need for the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pixedge.kernels.cpu.compiled import Int4Weight, variant
from pixedge.kernels.cpu.many_rows import int4_many_rows
from pixedge.kernels.cpu.prompt_rows import gate_rows, norm_rows, turn_rows
from pixedge.kv_cache import PagedStep


@dataclass(frozen=True)
class PromptLayer:
    """A layer's weights, in the order of its forward, and what shapes its steps.

    The reference is ``DecoderLayer.forward``; products are those of ``many_rows``, and a result is rounded to
    bfloat16 once for each of the layer's parts. weights: q, k, v, o, gate, up, down; whoever calls keeps the
    memory alive that they point to. norms: float32 [dim], before attention and before the feed-forward.
    """

    weights: Sequence[Int4Weight]
    norms: Sequence[Tensor]
    head_dim: int
    eps: float

    @staticmethod
    def usable() -> bool:
        """Tell whether the CPU has what the products of many rows need."""
        return variant() == "amx"

    def __call__(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: PagedStep) -> Tensor:
        """Map x bfloat16 [tokens, dim] to [tokens, dim]; cos and sin float32 [tokens, head_dim / 2]."""
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        wq, wk, wv, wo, gate, up, down = self.weights
        before_attention, before_mlp = self.norms
        normed = norm_rows(x, before_attention, self.eps)
        q, k, v = (
            _multiply(normed, weight).view(len(x), -1, self.head_dim) for weight in (wq, wk, wv)
        )  # [tokens, heads or kv_heads, head_dim]
        attended = attend(layer, turn_rows(q, cos, sin), turn_rows(k, cos, sin), v)
        x = _multiply(attended.flatten(-2).contiguous(), wo, x)
        normed = norm_rows(x, before_mlp, self.eps)
        hidden = gate_rows(_multiply(normed, gate), _multiply(normed, up))
        return _multiply(hidden, down, x)


def _multiply(x: Tensor, weight: Int4Weight, residual: Tensor | None = None) -> Tensor:
    y = int4_many_rows(x, weight, residual)
    if y is None:  # usable() has asked for the rest
        raise MemoryError("no memory for a product of a prompt")
    return y
