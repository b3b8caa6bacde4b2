"""Rotary angles against transformers, the formula in complex numbers, and what rotation promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

from pixedge.rope import apply_rotary, frequencies, rotary_1d, rotary_2d

HEAD_DIMS = st.integers(1, 32).map(lambda half: 2 * half)
THETAS = st.sampled_from((100.0, 1e4, 1e6, 1e9))


@given(HEAD_DIMS, THETAS)
def test_angles_equal_transformers_over_the_whole_context(head_dim: int, theta: float) -> None:
    config = MistralConfig(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta})
    positions = torch.tensor([0, 1, 2, 63, 4095, 131_071])
    cos, sin = MistralRotaryEmbedding(config)(torch.zeros(1), positions[None])
    expected_cos, expected_sin = (table[0, :, : head_dim // 2] for table in (cos, sin))
    found_cos, found_sin = rotary_1d(positions, head_dim, theta)
    torch.testing.assert_close(found_cos, expected_cos, atol=0, rtol=0)
    torch.testing.assert_close(found_sin, expected_sin, atol=0, rtol=0)


@given(HEAD_DIMS, THETAS, st.integers(0, 200))
def test_rotation_is_a_product_of_complex_numbers(head_dim: int, theta: float, position: int) -> None:
    """Dimension i turns with dimension i + head_dim / 2, by position / theta^(2i / head_dim)."""
    x = torch.randn(1, 3, head_dim, generator=torch.Generator().manual_seed(position))
    first, second = x.double().chunk(2, -1)
    rates = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(rates), position * rates)
    found = apply_rotary(x, *rotary_1d(torch.tensor([position]), head_dim, theta))
    torch.testing.assert_close(found, torch.cat([turned.real, turned.imag], -1).float(), atol=2e-4, rtol=0)


def scores(q: Tensor, k: Tensor, head_dim: int) -> Tensor:
    positions = torch.arange(len(q))
    cos, sin = rotary_1d(positions, head_dim, 1e4)
    return torch.einsum("qhd,khd->hqk", apply_rotary(q, cos, sin), apply_rotary(k, cos, sin))


def test_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 16, generator=generator).expand(9, 2, 16) for _ in range(2))
    found = scores(q, k, 16)
    for distance in range(-8, 9):
        diagonal = found.diagonal(distance, dim1=1, dim2=2)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    assert (found[:, 0, 1] - found[:, 0, 5]).abs().min() > 1e-3


def test_patches_turn_by_row_and_by_column() -> None:
    """Even frequencies follow the row and fill the first half, odd ones the column and the second."""
    rates = frequencies(16, 1e4)  # 8
    cos, sin = rotary_2d(3, 4, 16, 1e4)
    angles = torch.atan2(sin, cos).view(3, 4, 8)
    for row in range(3):
        for column in range(4):
            expected = torch.cat([row * rates[0::2], column * rates[1::2]])
            expected = torch.atan2(expected.sin(), expected.cos())
            torch.testing.assert_close(angles[row, column], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation_keeps_length_and_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    turned = apply_rotary(x, *rotary_1d(torch.arange(5), 32, 1e4))
    assert turned.dtype == dtype and turned.shape == x.shape
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), rtol=tolerance, atol=0)
    torch.testing.assert_close(turned[0], x[0], atol=0, rtol=0)  # position 0 does not turn
