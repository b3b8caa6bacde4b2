"""Where the keys and values of one layer lie, as the attention kernels take them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pixedge.kernels.cuda.layout import PAGE

__all__ = ["PAGE", "LayerPages"]


@dataclass(frozen=True)
class LayerPages:
    """One layer's pages: keys, values [pages, kv_heads, 16, head_dim], contiguous.

    Of the activations' 16-bit type without scales, or int8 with float16 scales [pages, kv_heads, 16], one for
    a token and head.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    def check(self, dtype: torch.dtype) -> None:
        """Assert what the kernels rely on, for activations of ``dtype``."""
        assert self.keys.ndim == 4 and self.keys.shape == self.values.shape and self.keys.shape[2] == PAGE
        assert self.keys.is_contiguous() and self.values.is_contiguous()
        assert self.keys.dtype == self.values.dtype, f"{self.keys.dtype} and {self.values.dtype}"
        assert (self.key_scales is None) == (self.value_scales is None)
        if self.key_scales is None or self.value_scales is None:
            assert self.keys.dtype == dtype, f"pages of {self.keys.dtype} for activations of {dtype}"
            return
        assert self.keys.dtype == torch.int8
        for scales in (self.key_scales, self.value_scales):
            assert scales.dtype == torch.float16 and scales.is_contiguous()
            assert scales.shape == self.keys.shape[:3], f"scales {tuple(scales.shape)}"

    @property
    def kv_heads(self) -> int:
        """How many key heads there are."""
        return self.keys.shape[1]

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.keys.shape[3]
