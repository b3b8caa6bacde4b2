"""The 4-bit layout: pairs undo each other, the bits lie where other engines look, and damage is named."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixedge.errors import ArtifactError
from pixedge.packing import (
    QuantizedWeight,
    dequantize,
    pack_gptq,
    pack_int4_cols,
    pack_int4_rows,
    unpack_gptq,
    unpack_int4_cols,
    unpack_int4_rows,
)


def random_q(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=generator)


def random_weight(out_features: int, groups: int, group_size: int, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(out_features, groups, generator=generator) * 0.1 + 1e-3
    scales = scales.to(torch.bfloat16).float()
    return QuantizedWeight(random_q(out_features, groups * group_size, seed), scales, group_size)


@settings(max_examples=40, deadline=None)
@given(words=st.integers(0, 9), columns=st.integers(0, 37), seed=st.integers(0, 2**31))
def test_rows_unpack_what_was_packed(words: int, columns: int, seed: int) -> None:
    q = random_q(8 * words, columns, seed)
    packed = pack_int4_rows(q)
    assert packed.dtype == torch.int32 and packed.shape == (words, columns)
    assert torch.equal(unpack_int4_rows(packed), q)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 37), words=st.integers(0, 9), seed=st.integers(0, 2**31))
def test_columns_unpack_what_was_packed(rows: int, words: int, seed: int) -> None:
    q = random_q(rows, 8 * words, seed)
    packed = pack_int4_cols(q)
    assert packed.dtype == torch.int32 and packed.shape == (rows, words) and packed.is_contiguous()
    assert torch.equal(unpack_int4_cols(packed), q)


@settings(max_examples=40, deadline=None)
@given(
    out_words=st.integers(1, 5),
    groups=st.integers(1, 5),
    group_size=st.sampled_from([8, 32, 128]),
    seed=st.integers(0, 2**31),
)
def test_gptq_unpacks_what_was_packed(out_words: int, groups: int, group_size: int, seed: int) -> None:
    weight = random_weight(8 * out_words, groups, group_size, seed)
    back = unpack_gptq(pack_gptq(weight), group_size)
    assert torch.equal(back.q, weight.q) and torch.equal(back.scales, weight.scales)
    assert back.group_size == group_size and back.scales.dtype == torch.float32


def test_packing_accepts_any_word_pattern() -> None:
    """All 32-bit patterns survive the other way round, sign bit included."""
    words = torch.tensor([[0, -1, 2**31 - 1, -(2**31), 0x12345678, -0x12345678]], dtype=torch.int32)
    assert torch.equal(pack_int4_rows(unpack_int4_rows(words)), words)
    assert torch.equal(pack_int4_cols(unpack_int4_cols(words)), words)


def test_lowest_value_lies_in_the_lowest_bits() -> None:
    q = torch.arange(8, 16, dtype=torch.uint8)
    assert int(pack_int4_rows(q[:, None])[0, 0]) & 0xFFFFFFFF == 0xFEDCBA98
    assert int(pack_int4_cols(q[None])[0, 0]) & 0xFFFFFFFF == 0xFEDCBA98


def test_layout_means_what_the_formula_says() -> None:
    """Numpy reads the four tensors by the layout's definition, sharing no code with the package."""
    weight = random_weight(out_features=16, groups=3, group_size=8)
    packed = {key: tensor.numpy() for key, tensor in pack_gptq(weight).items()}
    assert {key: (str(a.dtype), a.shape) for key, a in packed.items()} == {
        "qweight": ("int32", (3, 16)),
        "qzeros": ("int32", (3, 2)),
        "scales": ("float16", (3, 16)),
        "g_idx": ("int32", (24,)),
    }
    expected = np.empty((16, 24), dtype=np.float32)
    for o in range(16):
        for i in range(24):
            q = (int(packed["qweight"][i // 8, o]) >> (4 * (i % 8))) & 15
            g = int(packed["g_idx"][i])
            zero = ((int(packed["qzeros"][g, o // 8]) >> (4 * (o % 8))) & 15) + 1
            expected[o, i] = float(packed["scales"][g, o]) * (q - zero)
    assert np.array_equal(dequantize(weight, torch.float32).numpy(), expected)
    assert set(packed["qzeros"].ravel().tolist()) == {0x77777777}


def test_dequantising_is_exact_in_float16_and_rounded_once_in_bfloat16() -> None:
    weight = random_weight(out_features=64, groups=4, group_size=32)
    full = dequantize(weight, torch.float32)
    assert torch.equal(dequantize(weight, torch.float16).float(), full)
    assert torch.equal(dequantize(weight, torch.bfloat16), full.to(torch.bfloat16))


def test_packing_leaves_its_input_alone_and_takes_other_strides() -> None:
    weight = random_weight(out_features=16, groups=2, group_size=16)
    q, scales = weight.q.clone(), weight.scales.clone()
    strided = QuantizedWeight(weight.q.t().contiguous().t(), weight.scales.t().contiguous().t(), 16)
    for key, tensor in pack_gptq(weight).items():
        assert torch.equal(tensor, pack_gptq(strided)[key]) and tensor.is_contiguous()
    assert torch.equal(dequantize(strided, torch.float32), dequantize(weight, torch.float32))
    assert torch.equal(weight.q, q) and torch.equal(weight.scales, scales)


def test_scales_that_float16_cannot_hold_are_not_packed() -> None:
    weight = random_weight(out_features=8, groups=1, group_size=8)
    inexact = QuantizedWeight(weight.q, torch.full((8, 1), 0.1), 8)  # 0.1 needs more than 11 bits
    with pytest.raises(AssertionError, match="not exact in float16"):
        pack_gptq(inexact)


def damaged(key: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = pack_gptq(random_weight(out_features=16, groups=2, group_size=16))
    if tensor is None:
        del tensors[key]
    else:
        tensors[key] = tensor
    return tensors


def with_value(key: str, value: float) -> dict[str, torch.Tensor]:
    tensors = damaged(key, None) | {key: pack_gptq(random_weight(16, 2, 16))[key]}
    tensors[key].view(-1)[-1] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "group_size", "sentence"),
    [
        (damaged("qzeros", None), 16, "lacks qzeros"),
        (damaged("qweight", torch.zeros(16, dtype=torch.int32)), 16, r"qweight has shape \[16\]"),
        (damaged("qweight", torch.zeros(4, 16)), 16, r"torch.float32 \[4, 16\], expected torch.int32"),
        (damaged("scales", torch.ones(2, 16)), 16, r"scales is torch.float32"),
        (damaged("scales", torch.ones(2, 8, dtype=torch.float16)), 16, r"\[2, 8\], expected .* \[2, 16\]"),
        (damaged("g_idx", torch.zeros(31, dtype=torch.int32)), 16, r"\[31\], expected .* \[32\]"),
        (damaged("qzeros", torch.full((2, 2), 0x78777777, dtype=torch.int32)), 16, "a zero point is 9"),
        (with_value("g_idx", 0), 16, r"g_idx is not i // 16"),
        (with_value("scales", float("nan")), 16, "not a positive finite number"),
        (with_value("scales", 0.0), 16, "not a positive finite number"),
        (damaged("nothing", torch.zeros(1)), 24, "do not fit groups of 24"),
        (damaged("nothing", torch.zeros(1)), 0, "do not fit groups of 0"),
    ],
)
def test_damage_is_named_in_one_sentence(
    tensors: dict[str, torch.Tensor], group_size: int, sentence: str
) -> None:
    with pytest.raises(ArtifactError, match=sentence) as caught:
        unpack_gptq(tensors, group_size, name="layers.3.mlp.up_proj")
    text = str(caught.value)
    assert text.startswith("layers.3.mlp.up_proj") and text.endswith(".") and "\n" not in text
