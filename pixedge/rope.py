"""Rotary position embedding in half-split form: 1-D for the decoder, 2-D for the vision encoder.

Half-split means that dimension ``i`` of a head turns with dimension ``i + head_dim / 2``. Mistral's own
checkpoints pair neighbours instead; the exporter permutes their query and key rows once, at the door.
Formula: Su et al., RoFormer (arXiv 2104.09864).
"""

import torch
from torch import Tensor


def frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Return the turning rates, float32 [head_dim / 2], fastest first."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponents


def rotary_1d(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32 [tokens, head_dim / 2], for integer positions [tokens]."""
    angles = positions.float()[:, None] * frequencies(head_dim, theta, positions.device)
    return angles.cos(), angles.sin()


def rotary_2d(
    height: int, width: int, head_dim: int, theta: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32 [height * width, head_dim / 2], of a patch grid in row-major order.

    Even-numbered frequencies turn with the row and fill the first half; odd-numbered ones turn with the
    column and fill the second. Sizes are in patches.
    """
    rates = frequencies(head_dim, theta, device)
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * rates[0::2]
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * rates[1::2]
    angles = torch.cat(
        [
            rows[:, None, :].expand(height, width, head_dim // 4),
            columns[None, :, :].expand(height, width, head_dim // 4),
        ],
        dim=-1,
    ).reshape(height * width, head_dim // 2)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [..., tokens, heads, head_dim] by cos and sin [tokens, head_dim / 2]; float32 inside."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]  # one angle for all heads of a token
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).type_as(x)
