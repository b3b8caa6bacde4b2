"""Triton kernels for NVIDIA GPUs, each with the torch reference that it is held to.

    int4        products with 4-bit weights, 1 to 16 rows; unpacking for more
    int8        the output head: signed bytes with one scale a row
    norm        residual sum + RMSNorm
    activation  SiLU(gate) * up
    rotary      rotary embedding + write into the paged cache
    decoding    paged attention of one query a sequence, split over its context
    prefill     paged causal attention of many queries
    sampling    greedy choice and seeded draw
    graph       a decoding step as CUDA graphs
    launcher    what Triton builds before the first launch

This module, ``layout``, ``tuning``, ``footprint`` and ``launcher`` import neither torch nor triton, so that
they can be asked on any machine. With TRITON_INTERPRET=1 in the environment before triton is imported, the
kernels run on CPU tensors.
"""

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available(device: "torch.device") -> bool:
    """Tell whether the kernels run on ``device``: a GPU of compute capability 8.0 or later, and triton.

    CUDA is touched only when ``device`` is a CUDA device.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
