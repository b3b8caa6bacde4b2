"""Pages for kernels to write into."""

import torch

from pixedge.config import DecoderConfig
from pixedge.kernels.cuda.pages import PAGE, LayerPages
from tests.gpu_engines import DEVICE


def pages_of_zeros(config: DecoderConfig, count: int, dtype: torch.dtype) -> list[LayerPages]:
    shape = (count, config.n_kv_heads, PAGE, config.head_dim)
    keys, values = (
        [torch.zeros(shape, dtype=dtype, device=DEVICE) for _ in range(config.n_layers)] for _ in "kv"
    )
    return [LayerPages(*pair) for pair in zip(keys, values, strict=True)]
