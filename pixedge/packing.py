"""The tensor layout of 4-bit weights: pure pack and unpack pairs, shared by export and run.

The layout is AutoGPTQ's first one, which transformers, GPTQModel and vLLM read. A linear of shape
[out, in] in groups of g inputs is stored as

    qweight  int32   [in/8, out]      eight 4-bit values along `in`, the lowest input in the lowest bits
    qzeros   int32   [in/g, out/8]    eight zero points along `out`, each stored minus one
    scales   float16 [in/g, out]
    g_idx    int32   [in]             the group of each input

and stands for weight[o, i] = scales[g_idx[i], o] * (q[i, o] - zeros[g_idx[i], o]). What pixedge quantises
is symmetric and in natural order: every zero point is 8, so every stored one is 7, and g_idx is i // g.
Weights that other quantisers made may have any zero point, and with "activation order" a group may be any g
of the inputs. Their tensors stay as they came, because that is the form in which other engines read them; the
inputs are sorted by group while a weight is loaded.
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
    """A 4-bit weight whose groups lie side by side, in the notation of its columns j.

        weight[o, order[j]] = scales[o, j // group_size] * (q[o, j] - zeros[o, j // group_size])

    q: uint8 [out, in], values 0 to 15. scales: floating [out, in / group_size], finite. zeros: uint8, shaped
    like scales; None stands for 8 everywhere. order: int64 [in], the input that each column multiplies; None
    stands for j.
    """

    q: Tensor
    scales: Tensor
    group_size: int
    zeros: Tensor | None = None
    order: Tensor | None = None

    def __post_init__(self) -> None:
        """Assert that the parts fit each other."""
        assert self.q.dtype == torch.uint8 and self.q.dim() == 2, f"q is {self.q.dtype} {tuple(self.q.shape)}"
        assert self.scales.is_floating_point(), f"scales are {self.scales.dtype}"
        assert self.group_size > 0 and self.in_features % self.group_size == 0, (
            f"{self.in_features} inputs do not fall into groups of {self.group_size}"
        )
        expected = (self.out_features, self.in_features // self.group_size)
        assert tuple(self.scales.shape) == expected, f"scales {tuple(self.scales.shape)}, expected {expected}"
        zeros, order = self.zeros, self.order
        assert zeros is None or (zeros.dtype == torch.uint8 and tuple(zeros.shape) == expected), (
            f"zeros do not fit scales {expected}"
        )
        assert order is None or (order.dtype == torch.int64 and tuple(order.shape) == (self.in_features,)), (
            f"order does not fit {self.in_features} inputs"
        )

    @property
    def out_features(self) -> int:
        """The number of output features."""
        return self.q.shape[0]

    @property
    def in_features(self) -> int:
        """The number of input features."""
        return self.q.shape[1]


@dataclass(frozen=True)
class GptqWeight:
    """A 4-bit weight as a file holds it, checked: what a kernel can repack without unpacking it first.

    words: int32 [in / 8, out], eight inputs each, in their natural order. scales: float16 or bfloat16
    [groups, out]. zeros: uint8 [groups, out]; None stands for 8 everywhere. order: int64 [in], the inputs
    sorted by group; None where that is their natural order.
    """

    words: Tensor
    scales: Tensor
    group_size: int
    zeros: Tensor | None = None
    order: Tensor | None = None

    @property
    def out_features(self) -> int:
        """The number of output features."""
        return self.words.shape[1]

    @property
    def in_features(self) -> int:
        """The number of input features."""
        return self.words.shape[0] * NIBBLES

    def unpacked(self) -> QuantizedWeight:
        """Return the same weight with a byte for each value, its groups side by side; scales as float32."""
        rows = unpack_int4_rows(self.words)  # [in, out]
        if self.order is not None:
            rows = rows[self.order]
        return QuantizedWeight(
            rows.t().contiguous(),
            self.scales.t().float().contiguous(),
            self.group_size,
            None if self.zeros is None else self.zeros.t().contiguous(),
            self.order,
        )


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
    """Lay a symmetric weight in natural order out as the four tensors that the module docstring describes.

    in, out and the group size must be multiples of 8, and every scale exact in float16.
    """
    assert weight.zeros is None and weight.order is None, "only a symmetric weight in natural order is packed"
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
        "g_idx": natural_groups(weight.in_features, weight.group_size, weight.q.device),
    }


def read_gptq(tensors: Mapping[str, Tensor], group_size: int, name: str = "a 4-bit linear") -> GptqWeight:
    """Check the four tensors that pack_gptq makes, without unpacking them.

    name is the linear's, for the errors. Raises ArtifactError where a tensor is missing, has another
    shape or dtype, a zero point is not 8, an input's group is not i // group_size, or a scale is not a
    positive finite number.
    """
    remedy = "export the model again"
    _check_parts(tensors, group_size, name, remedy, (torch.float16,))
    if not _all_eight(tensors["qzeros"], 1):
        zeros = _unpack_zeros(tensors["qzeros"], 1)
        raise ArtifactError(
            f"{name}: a zero point is {int(zeros[zeros != ZERO_POINT][0])}, and an export of pixedge is "
            f"symmetric, with zero points that are all {ZERO_POINT}; {remedy}."
        )
    g_idx = tensors["g_idx"]
    if not torch.equal(g_idx, natural_groups(len(g_idx), group_size, g_idx.device)):
        raise ArtifactError(
            f"{name}: g_idx is not i // {group_size}, and an export of pixedge has inputs in their natural "
            f"order; {remedy}."
        )
    scales = tensors["scales"]
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise ArtifactError(f"{name}: a scale is not a positive finite number; {remedy}.")
    return GptqWeight(tensors["qweight"], scales, group_size)


def unpack_gptq(
    tensors: Mapping[str, Tensor], group_size: int, name: str = "a 4-bit linear"
) -> QuantizedWeight:
    """Undo pack_gptq; scales come back as float32, which holds them exactly. Raises as ``read_gptq``."""
    return read_gptq(tensors, group_size, name).unpacked()


def read_imported_gptq(
    tensors: Mapping[str, Tensor],
    group_size: int,
    zero_offset: int,
    name: str = "a 4-bit linear",
    remedy: str = "import the model again",
) -> GptqWeight:
    """Check a weight that another quantiser made: any zero points, groups of any inputs, 16-bit scales.

    group_size: -1 makes one group of all inputs. zero_offset is what was taken from a zero point to store
    it: 1 in AutoGPTQ's format ("gptq"), 0 in "gptq_v2". Zero points that are all 8 come back as None, and so
    does an order that is natural; where it is not, columns are sorted by group and keep their order inside
    each. name and remedy are for the errors. Raises ArtifactError where a tensor is missing, has another
    shape or dtype, a group has not group_size inputs, or a scale is negative or not finite.
    """
    if group_size == -1 and "qweight" in tensors:
        group_size = len(tensors["qweight"]) * NIBBLES
    _check_parts(tensors, group_size, name, remedy, (torch.float16, torch.bfloat16))
    scales, g_idx = tensors["scales"], tensors["g_idx"]
    # Weights that are all 0, or nearly, have a scale that float16 rounds to 0, which is right.
    if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        raise ArtifactError(f"{name}: a scale is negative or not finite; {remedy}.")
    order = None
    natural = natural_groups(len(g_idx), group_size, g_idx.device)
    if not torch.equal(g_idx, natural):
        order = torch.argsort(g_idx, stable=True)
        if not torch.equal(g_idx[order], natural):
            raise ArtifactError(
                f"{name}: g_idx does not put {group_size} inputs into each of {len(scales)} groups; {remedy}."
            )
    symmetric = _all_eight(tensors["qzeros"], zero_offset)
    zeros = None if symmetric else _unpack_zeros(tensors["qzeros"], zero_offset)  # [groups, out]
    return GptqWeight(tensors["qweight"], scales, group_size, zeros, order)


def unpack_imported_gptq(
    tensors: Mapping[str, Tensor],
    group_size: int,
    zero_offset: int,
    name: str = "a 4-bit linear",
    remedy: str = "import the model again",
) -> QuantizedWeight:
    """Read a weight that another quantiser made; arguments, result and errors as ``read_imported_gptq``."""
    return read_imported_gptq(tensors, group_size, zero_offset, name, remedy).unpacked()


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Compute scales * (q - zeros), as [out, in] in dtype, inputs in their natural order.

    The product is formed in float32 and rounded once. A scale that is exact in bfloat16 has 8 significant
    bits and q - 8 at most 3 (8 itself is a power of two), so the product needs 11: float32 and float16 hold
    it exactly, bfloat16 rounds it. With a float16 scale and any zero point it needs 15, which float32 holds.
    """
    grouped = weight.q.view(weight.out_features, -1, weight.group_size).to(
        torch.float32
    )  # [out, groups, group]
    grouped -= ZERO_POINT if weight.zeros is None else weight.zeros[..., None]
    grouped *= weight.scales.to(torch.float32)[..., None]
    sorted_by_group = grouped.view(weight.out_features, weight.in_features).to(dtype)
    if weight.order is None:
        return sorted_by_group
    natural = torch.empty_like(sorted_by_group)
    natural[:, weight.order] = sorted_by_group
    return natural


def natural_groups(in_features: int, group_size: int, device: torch.device | None = None) -> Tensor:
    """Return the group of each input in natural order: int32 [in]."""
    return torch.arange(in_features, dtype=torch.int32, device=device) // group_size


def _check_parts(
    tensors: Mapping[str, Tensor],
    group_size: int,
    name: str,
    remedy: str,
    scale_dtypes: tuple[torch.dtype, ...],
) -> None:
    """Raise ArtifactError where one of the four tensors is missing or has another shape or dtype."""
    missing = [key for key in ("qweight", "qzeros", "scales", "g_idx") if key not in tensors]
    if missing:
        raise ArtifactError(f"{name} lacks {', '.join(missing)}; {remedy}.")
    qweight = tensors["qweight"]
    if qweight.dim() != 2 or 0 in qweight.shape:
        raise ArtifactError(
            f"{name}: qweight has shape {list(qweight.shape)}, expected [inputs / 8, outputs]; {remedy}."
        )
    in_features, out_features = qweight.shape[0] * NIBBLES, qweight.shape[1]
    if group_size <= 0 or in_features % group_size or out_features % NIBBLES:
        raise ArtifactError(
            f"{name}: {in_features} inputs and {out_features} outputs do not fit groups of {group_size} "
            f"inputs and words of {NIBBLES} outputs; {remedy}."
        )
    groups = in_features // group_size
    expected = {
        "qweight": ((torch.int32,), [in_features // NIBBLES, out_features]),
        "qzeros": ((torch.int32,), [groups, out_features // NIBBLES]),
        "scales": (scale_dtypes, [groups, out_features]),
        "g_idx": ((torch.int32,), [in_features]),
    }
    for key, (dtypes, shape) in expected.items():
        tensor = tensors[key]
        if tensor.dtype not in dtypes or list(tensor.shape) != shape:
            raise ArtifactError(
                f"{name}: {key} is {tensor.dtype} {list(tensor.shape)}, expected "
                f"{' or '.join(map(str, dtypes))} {shape}; {remedy}."
            )


def _all_eight(qzeros: Tensor, offset: int) -> bool:
    """Tell whether all zero points are 8, by whole words: unpacking them takes longer than all else."""
    word = sum((ZERO_POINT - offset) << (BITS * k) for k in range(NIBBLES))
    return bool((qzeros == (word if word < 2**31 else word - 2**32)).all())


def _unpack_zeros(qzeros: Tensor, offset: int) -> Tensor:
    """Return the zero points uint8 [groups, out] of qzeros, stored minus ``offset``.

    The offset is added to whole words, as it was taken from them: GPTQModel stores a zero point of 0 as 15
    and borrows from its neighbour, which only the carry of the same sum undoes.
    """
    if offset:
        word = sum(offset << (BITS * k) for k in range(NIBBLES))
        qzeros = qzeros + word  # int32 wraps
    return unpack_int4_cols(qzeros)
