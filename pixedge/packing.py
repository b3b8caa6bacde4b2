"""The tensor layout of 4-bit weights: pure pack and unpack pairs, shared by export and run.

The layout is AutoGPTQ's first one, which transformers, GPTQModel and vLLM read. A linear of shape
[out, in] in groups of g inputs is stored as

    qweight  int32   [in/8, out]      eight 4-bit values along `in`, the lowest input in the lowest bits
    qzeros   int32   [in/g, out/8]    eight zero points along `out`, each stored minus one
    scales   float16 [in/g, out]
    g_idx    int32   [in]             the group of each input; here always i // g

and stands for weight[o, i] = scales[g_idx[i], o] * (q[i, o] - zero). pixedge's weights are symmetric:
every zero point is 8, so every stored one is 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pixedge.errors import ArtifactError

BITS = 4
ZERO_POINT = 8
NIBBLES = 32 // BITS
"""How many 4-bit values one int32 word holds."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A symmetric 4-bit weight: weight[o, i] = scales[o, i // group_size] * (q[o, i] - 8).

    q: uint8 [out, in], values 0 to 15. scales: floating [out, in / group_size], finite and above 0.
    """

    q: Tensor
    scales: Tensor
    group_size: int

    def __post_init__(self) -> None:
        """Assert that the parts fit each other."""
        assert self.q.dtype == torch.uint8 and self.q.dim() == 2, f"q is {self.q.dtype} {tuple(self.q.shape)}"
        assert self.scales.is_floating_point(), f"scales are {self.scales.dtype}"
        assert self.group_size > 0 and self.in_features % self.group_size == 0, (
            f"{self.in_features} inputs do not fall into groups of {self.group_size}"
        )
        expected = (self.out_features, self.in_features // self.group_size)
        assert tuple(self.scales.shape) == expected, f"scales {tuple(self.scales.shape)}, expected {expected}"

    @property
    def out_features(self) -> int:
        """The number of output features."""
        return self.q.shape[0]

    @property
    def in_features(self) -> int:
        """The number of input features."""
        return self.q.shape[1]


def pack_int4_rows(q: Tensor) -> Tensor:
    """Pack eight values along the first dimension into a word, the lowest row in the lowest bits.

    q: uint8 [rows, columns], values 0 to 15, rows a multiple of 8. Returns int32 [rows / 8, columns].
    """
    assert q.dtype == torch.uint8 and q.dim() == 2, (
        f"expected uint8 [rows, columns], got {q.dtype} {tuple(q.shape)}"
    )
    assert q.shape[0] % NIBBLES == 0, f"{q.shape[0]} rows are not a multiple of {NIBBLES}"
    assert q.numel() == 0 or int(q.max()) < 2**BITS, f"{int(q.max())} does not fit into {BITS} bits"
    packed = torch.zeros(q.shape[0] // NIBBLES, q.shape[1], dtype=torch.int32, device=q.device)
    for k in range(NIBBLES):
        # The topmost nibble reaches the sign bit; torch shifts the bit pattern, so nothing is lost.
        packed |= q[k::NIBBLES].to(torch.int32) << (BITS * k)
    return packed


def unpack_int4_rows(packed: Tensor) -> Tensor:
    """Undo pack_int4_rows: int32 [rows / 8, columns] to uint8 [rows, columns], values 0 to 15."""
    assert packed.dtype == torch.int32 and packed.dim() == 2, (
        f"expected int32 [rows, columns], got {packed.dtype}"
    )
    words, columns = packed.shape
    q = torch.empty(words, NIBBLES, columns, dtype=torch.uint8, device=packed.device)
    for k in range(NIBBLES):
        q[:, k] = ((packed >> (BITS * k)) & (2**BITS - 1)).to(torch.uint8)
    return q.view(words * NIBBLES, columns)


def pack_int4_cols(q: Tensor) -> Tensor:
    """Pack eight values along the second dimension into a word, the lowest column in the lowest bits.

    q: uint8 [rows, columns], values 0 to 15, columns a multiple of 8. Returns int32 [rows, columns / 8].
    """
    return pack_int4_rows(q.t()).t().contiguous()


def unpack_int4_cols(packed: Tensor) -> Tensor:
    """Undo pack_int4_cols: int32 [rows, columns / 8] to uint8 [rows, columns], values 0 to 15."""
    return unpack_int4_rows(packed.t()).t().contiguous()


def pack_gptq(weight: QuantizedWeight) -> dict[str, Tensor]:
    """Lay a weight out as the four tensors that the module docstring describes.

    in, out and the group size must be multiples of 8, and every scale exact in float16.
    """
    assert weight.group_size % NIBBLES == 0, f"group size {weight.group_size} is not a multiple of {NIBBLES}"
    scales = weight.scales.t().to(torch.float16).contiguous()  # [groups, out]
    # float32 on both sides: comparing float16 with bfloat16 directly would round one to the other.
    assert torch.equal(scales.float(), weight.scales.t().float()), "a scale is not exact in float16"
    groups, out_features = scales.shape
    zeros = torch.full((groups, out_features), ZERO_POINT - 1, dtype=torch.uint8, device=weight.q.device)
    return {
        "qweight": pack_int4_rows(weight.q.t()),
        "qzeros": pack_int4_cols(zeros),
        "scales": scales,
        "g_idx": _natural_groups(weight.in_features, weight.group_size, weight.q.device),
    }


def unpack_gptq(
    tensors: Mapping[str, Tensor], group_size: int, name: str = "a 4-bit linear"
) -> QuantizedWeight:
    """Undo pack_gptq; scales come back as float32, which holds them exactly.

    name is the linear's, for the errors. Raises ArtifactError where a tensor is missing, has another
    shape or dtype, a zero point is not 8, an input's group is not i // group_size, or a scale is not a
    positive finite number.
    """
    missing = [key for key in ("qweight", "qzeros", "scales", "g_idx") if key not in tensors]
    if missing:
        raise ArtifactError(f"{name} lacks {', '.join(missing)}; export the model again.")
    qweight, scales = tensors["qweight"], tensors["scales"]
    if qweight.dim() != 2 or 0 in qweight.shape:
        raise ArtifactError(
            f"{name}: qweight has shape {list(qweight.shape)}, expected [inputs / 8, outputs]; "
            "export the model again."
        )
    in_features, out_features = qweight.shape[0] * NIBBLES, qweight.shape[1]
    if group_size <= 0 or in_features % group_size or out_features % NIBBLES:
        raise ArtifactError(
            f"{name}: {in_features} inputs and {out_features} outputs do not fit groups of {group_size} "
            f"inputs and words of {NIBBLES} outputs; export the model again."
        )
    groups = in_features // group_size
    expected = {
        "qweight": (torch.int32, [in_features // NIBBLES, out_features]),
        "qzeros": (torch.int32, [groups, out_features // NIBBLES]),
        "scales": (torch.float16, [groups, out_features]),
        "g_idx": (torch.int32, [in_features]),
    }
    for key, (dtype, shape) in expected.items():
        tensor = tensors[key]
        if tensor.dtype != dtype or list(tensor.shape) != shape:
            raise ArtifactError(
                f"{name}: {key} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {shape}; "
                "export the model again."
            )
    zeros = unpack_int4_cols(tensors["qzeros"])
    if not bool((zeros == ZERO_POINT - 1).all()):
        found = int(zeros[zeros != ZERO_POINT - 1][0]) + 1
        raise ArtifactError(
            f"{name}: a zero point is {found}, and pixedge reads symmetric weights only, whose zero "
            f"points are all {ZERO_POINT}; export the model with pixedge."
        )
    if not torch.equal(tensors["g_idx"], _natural_groups(in_features, group_size, tensors["g_idx"].device)):
        raise ArtifactError(
            f"{name}: g_idx is not i // {group_size}, and pixedge reads inputs in their natural order only; "
            "export the model with pixedge."
        )
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise ArtifactError(f"{name}: a scale is not a positive finite number; export the model again.")
    return QuantizedWeight(
        unpack_int4_rows(qweight).t().contiguous(), scales.t().float().contiguous(), group_size
    )


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Compute scales * (q - 8), as [out, in] in dtype.

    The product is formed in float32 and rounded once. A scale that is exact in bfloat16 has 8 significant
    bits and q - 8 at most 3 (8 itself is a power of two), so the product needs 11: float32 and float16 hold
    it exactly, bfloat16 rounds it.
    """
    grouped = weight.q.view(weight.out_features, -1, weight.group_size).to(
        torch.float32
    )  # [out, groups, group]
    grouped -= ZERO_POINT
    grouped *= weight.scales.to(torch.float32)[..., None]
    return grouped.view(weight.out_features, weight.in_features).to(dtype)


def _natural_groups(in_features: int, group_size: int, device: torch.device) -> Tensor:
    """Return the group of each input in natural order: int32 [in]."""
    return torch.arange(in_features, dtype=torch.int32, device=device) // group_size
