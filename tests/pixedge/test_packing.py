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
    unpack_imported_gptq,
    unpack_int4_cols,
    unpack_int4_rows,
)
from tests.gptq_folders import Variant, pack


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


# Weights of other quantisers


@settings(max_examples=40, deadline=None)
@given(
    group_size=st.sampled_from([32, 64, 128, -1]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    form=st.sampled_from(["gptq", "gptq_v2"]),
    scale_dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_imported_weights_are_what_the_definition_says(
    group_size: int, symmetric: bool, act_order: bool, form: str, scale_dtype: torch.dtype, seed: int
) -> None:
    """A packer in numpy that shares no code with the package, outputs with zero points of 0 among them."""
    variant = Variant(group_size, symmetric, act_order, form, scale_dtype)
    packed = pack(torch.randn(24, 256, generator=torch.Generator().manual_seed(seed)), variant, seed)
    weight = unpack_imported_gptq(packed.tensors, group_size, 1 if form == "gptq" else 0)
    assert torch.equal(dequantize(weight, torch.float32), packed.weight)
    assert (weight.zeros is None) == symmetric
    assert (weight.order is not None) == (act_order and group_size != -1)
    assert weight.group_size == (256 if group_size == -1 else group_size)
    assert weight.q.is_contiguous() and weight.scales.dtype == torch.float32


def test_a_zero_point_of_0_borrows_and_comes_back() -> None:
    """Stored minus one, 0 takes 1 from its neighbour in the word; each read alone, both would be wrong."""
    tensors = pack_gptq(random_weight(out_features=16, groups=2, group_size=16))
    tensors["qzeros"][0, 0] = (0x98765430 - 0x11111111) - (1 << 32)
    zeros = unpack_imported_gptq(tensors, 16, 1).zeros
    assert zeros is not None
    assert zeros[:8, 0].tolist() == [0, 3, 4, 5, 6, 7, 8, 9]
    assert zeros[8:, 0].tolist() == [8] * 8 and zeros[:, 1].tolist() == [8] * 16


def test_columns_of_a_group_keep_their_order() -> None:
    """A stable sort makes the order, and with it every sum, the same on every machine."""
    tensors = pack_gptq(random_weight(out_features=16, groups=2, group_size=16))
    tensors["g_idx"] = torch.arange(32, dtype=torch.int32) % 2
    order = unpack_imported_gptq(tensors, 16, 1).order
    assert order is not None and order.tolist() == [*range(0, 32, 2), *range(1, 32, 2)]


def test_exports_are_imported_as_they_are() -> None:
    weight = random_weight(out_features=16, groups=3, group_size=32)
    back = unpack_imported_gptq(pack_gptq(weight), 32, 1)
    assert torch.equal(back.q, weight.q) and torch.equal(back.scales, weight.scales)
    assert back.zeros is None and back.order is None


def test_a_scale_of_0_is_a_group_of_zeros() -> None:
    tensors = with_value("scales", 0.0)
    weight = dequantize(unpack_imported_gptq(tensors, 16, 1), torch.float32)
    assert bool((weight[-1, 16:] == 0).all()) and bool((weight[:-1] != 0).any())


@pytest.mark.parametrize(
    ("tensors", "group_size", "sentence"),
    [
        (damaged("g_idx", None), 16, "lacks g_idx"),
        (damaged("qweight", None), -1, "lacks qweight"),
        (
            damaged("scales", torch.ones(2, 16)),
            16,
            "torch.float32 .* expected torch.float16 or torch.bfloat16",
        ),
        (
            damaged("nothing", torch.zeros(1)),
            -1,
            r"qzeros is torch.int32 \[2, 2\], expected torch.int32 \[1, 2\]",
        ),
        (with_value("scales", float("inf")), 16, "a scale is negative or not finite"),
        (with_value("scales", -1.0), 16, "a scale is negative or not finite"),
        (with_value("g_idx", 0), 16, "g_idx does not put 16 inputs into each of 2 groups"),
        (with_value("g_idx", 2), 16, "g_idx does not put 16 inputs into each of 2 groups"),
        (with_value("g_idx", -1), 16, "g_idx does not put 16 inputs into each of 2 groups"),
        (damaged("nothing", torch.zeros(1)), -2, "do not fit groups of -2"),
    ],
)
def test_damage_of_imported_weights_is_named(
    tensors: dict[str, torch.Tensor], group_size: int, sentence: str
) -> None:
    with pytest.raises(ArtifactError, match=sentence) as caught:
        unpack_imported_gptq(tensors, group_size, 1, name="layers.3.mlp.up_proj")
    text = str(caught.value)
    assert text.startswith("layers.3.mlp.up_proj") and text.endswith("; import the model again.")
