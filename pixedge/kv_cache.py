"""The keys and values of one sequence, written once and read by every later token."""

import torch
from torch import Tensor
from torch.nn import functional

from pixedge.config import DecoderConfig


class KVCache:
    """Room for ``capacity`` tokens of one sequence in every layer; an ``Attend`` for the decoder.

    A step writes its keys and values behind the ``length`` tokens already held and attends to all of them;
    ``advance`` makes the step's tokens count once every layer has seen them.
    """

    def __init__(
        self, config: DecoderConfig, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate 2 * layers * capacity * kv_heads * head_dim elements of ``dtype``."""
        shape = (config.n_layers, config.n_kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` more as held."""
        self.length += tokens
        assert self.length <= self.capacity

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as ``Attend`` says: token i of the step sees the held tokens and the step's first i + 1."""
        tokens, heads, head_dim = q.shape
        end = self.length + tokens
        assert end <= self.capacity, f"{end} tokens in a cache for {self.capacity}"
        self.keys[layer, :, self.length : end] = k.transpose(0, 1)
        self.values[layer, :, self.length : end] = v.transpose(0, 1)
        keys, values = self.keys[layer, :, :end], self.values[layer, :, :end]  # [kv_heads, end, head_dim]
        groups = heads // keys.shape[0]
        if tokens == 1:
            # The queries that share a key stand in as a sequence of `groups` queries: the cache is read once.
            out = functional.scaled_dot_product_attention(
                q.view(-1, groups, head_dim)[None], keys[None], values[None]
            )
            return out.reshape(1, heads, head_dim)
        mask = None
        if self.length:
            mask = torch.ones(tokens, end, dtype=torch.bool, device=q.device).tril(self.length)
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys.repeat_interleave(groups, 0)[None],
            values.repeat_interleave(groups, 0)[None],
            attn_mask=mask,
            is_causal=mask is None,
        )
        return out[0].transpose(0, 1)
