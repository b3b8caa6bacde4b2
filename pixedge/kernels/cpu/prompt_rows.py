"""What lies between the products of a prompt: norm, rotation and gate, each over all rows in one call.

The references are ``RMSNorm.forward``, ``apply_rotary`` and ``silu(gate) * up``. Here everything is float32
inside and rounded to bfloat16 once, at the end. The callers know that the variant is "amx".
"""

import torch
from torch import Tensor

from pixedge.kernels.cpu.compiled import library, pointer


def norm_rows(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight for x bfloat16 [tokens, dim] and weight float32 [dim]."""
    opened = library()
    assert opened is not None and x.dtype == torch.bfloat16 and x.ndim == 2
    assert weight.dtype == torch.float32 and weight.shape == x.shape[1:]
    y = torch.empty_like(x)
    failed = opened.pixedge_norm_rows(pointer(x), pointer(weight), eps, *x.shape, pointer(y))
    assert not failed
    return y


def turn_rows(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x bfloat16 [tokens, heads, head_dim] in place by float32 [tokens, head_dim / 2]; return x."""
    opened = library()
    assert opened is not None and x.dtype == torch.bfloat16 and x.ndim == 3 and x.shape[2] % 2 == 0
    for angles in (cos, sin):
        assert angles.dtype == torch.float32 and angles.shape == (len(x), x.shape[2] // 2)
    failed = opened.pixedge_turn_rows(pointer(x), *x.shape, pointer(cos), pointer(sin))
    assert not failed
    return x


def gate_rows(gate: Tensor, up: Tensor) -> Tensor:
    """Turn gate bfloat16 [tokens, width] into silu(gate) * up in place; return it."""
    opened = library()
    assert opened is not None and gate.dtype == up.dtype == torch.bfloat16
    assert gate.ndim == 2 and gate.shape == up.shape
    failed = opened.pixedge_gate_rows(pointer(gate), pointer(up), *gate.shape)
    assert not failed
    return gate
