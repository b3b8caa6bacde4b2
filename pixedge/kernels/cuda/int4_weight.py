"""The 4-bit weight as the GPU's kernels read it, made from a file's words or from a byte for each value.

Blocks of 16 outputs by 128 inputs are 1 KB in one piece, so that threads load 16 bytes each and a program
reads straight on through memory. A word holds 8 inputs of one output. Its nibble j and nibble j + 4 are the
neighbouring inputs 32j + 2i and 32j + 2i + 1 of word i: one shift, mask and subtraction make both of them
numbers that lie in one register as the tensor cores want them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from pixedge.kernels.cuda.layout import BLOCK_IN, BLOCK_OUT, PADDED_OUT, WORDS
from pixedge.packing import ZERO_POINT, GptqWeight, QuantizedWeight

OUTPUTS_AT_ONCE = 4096
"""Outputs that are laid out at a time: bounds what laying out takes beside the weight."""
EIGHTS = 0x88888888 - (1 << 32)
"""A word of values that stand for 0."""


class UnsuitedWeightError(ValueError):
    """A weight that the layout cannot hold; other products can."""


@dataclass(frozen=True)
class Int4Weight:
    """A weight [out, in] in blocks; made by ``pack`` or ``repack``.

    words: int32 [out / 16, in / 128, 16, 16], the last two being output and word. scales: float16 [out / 16,
    groups, 16]. zeros: float16 like scales, or None for 8 everywhere. order: int32 [in], the input that each
    column multiplies, or None where they are in order. Outputs and inputs beyond the weight's own are filled
    with zeros of scale 0.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None
    out_features: int
    in_features: int
    group_size: int

    @classmethod
    def pack(cls, quantized: QuantizedWeight, device: torch.device) -> Self:
        """Lay a weight out whose group size ``takes`` accepts; scales must be exact in float16."""
        assert takes(quantized), f"groups of {quantized.group_size} in {quantized.in_features} inputs"
        in_features = quantized.in_features
        outs = _padded(quantized.out_features)
        blocks = -(-in_features // BLOCK_IN)
        words = torch.empty(outs // BLOCK_OUT, blocks, BLOCK_OUT, WORDS, dtype=torch.int32, device=device)
        for start in range(0, outs, OUTPUTS_AT_ONCE):
            end = min(start + OUTPUTS_AT_ONCE, outs)
            q = quantized.q[start:end].to(device)
            padding = (0, blocks * BLOCK_IN - in_features, 0, end - start - len(q))
            q = functional.pad(q, padding, value=ZERO_POINT)
            # [out / 16, 16, blocks, plane j, word i, half h], input 32j + 2i + h of its block
            q = q.view(-1, BLOCK_OUT, blocks, 4, WORDS, 2).permute(0, 2, 1, 4, 5, 3)
            part = words[start // BLOCK_OUT : end // BLOCK_OUT].zero_()
            for half in range(2):
                for plane in range(4):
                    part |= q[..., half, plane].to(torch.int32) << (16 * half + 4 * plane)
        return cls._with_scales(words, quantized, quantized.scales, quantized.zeros, device)

    @classmethod
    def repack(cls, parts: Sequence[GptqWeight], device: torch.device) -> Self:
        """Lay out weights of the same inputs, stacked by outputs, from the words of a file.

        Words are taken apart by the device. Raises UnsuitedWeightError where ``takes`` refuses a group size,
        where parts have other groups or orders of columns, or where a scale leaves float16's range.
        """
        first = parts[0]
        if not all(takes(part) and part.group_size == first.group_size for part in parts):
            raise UnsuitedWeightError(f"groups of {', '.join(str(part.group_size) for part in parts)} inputs")
        if any(not bool(part.scales.to(torch.float16).isfinite().all()) for part in parts):
            raise UnsuitedWeightError("a scale is beyond float16's range")
        if any(part.order is not None for part in parts):
            if not all(_same(part.order, first.order) for part in parts):
                raise UnsuitedWeightError("projections that read the same input have other orders of columns")
            return cls.pack(stack([part.unpacked() for part in parts]), device)
        source = torch.cat([part.words.to(device) for part in parts], 1)  # [in / 8, out]
        rows, outputs = source.shape
        outs, blocks = _padded(outputs), -(-rows // WORDS)
        words = torch.empty(outs // BLOCK_OUT, blocks, BLOCK_OUT, WORDS, dtype=torch.int32, device=device)
        for start in range(0, outs, OUTPUTS_AT_ONCE):
            end = min(start + OUTPUTS_AT_ONCE, outs)
            found = source[:, start:end]
            padding = (0, end - start - found.shape[1], 0, blocks * WORDS - rows)
            found = functional.pad(found, padding, value=EIGHTS).view(blocks, 4, 4, -1)
            # word 4a + c of a block takes byte c of the source's words 4j + a, which holds inputs
            # 32j + 8a + 2c and the next one
            made = torch.zeros(blocks, 4, 4, end - start, dtype=torch.int32, device=device)
            for c in range(4):
                for plane in range(4):
                    pair = found[:, plane] >> (8 * c)
                    made[:, :, c] |= ((pair & 15) << (4 * plane)) | (((pair >> 4) & 15) << (16 + 4 * plane))
            made = made.view(blocks, WORDS, -1, BLOCK_OUT).permute(2, 0, 3, 1)
            words[start // BLOCK_OUT : end // BLOCK_OUT] = made
        zeros = _join_zeros([None if part.zeros is None else part.zeros.t() for part in parts], parts)
        scales = torch.cat([part.scales.t() for part in parts])
        # what stands for all parts: only its numbers are asked for
        whole = GptqWeight(source, scales.t(), first.group_size)
        return cls._with_scales(words, whole, scales, zeros, device)

    @classmethod
    def _with_scales(
        cls,
        words: Tensor,
        weight: QuantizedWeight | GptqWeight,
        scales: Tensor,
        zeros: Tensor | None,
        device: torch.device,
    ) -> Self:
        """Lay scales and zeros [out, groups] out beside the words."""
        group, outs = weight.group_size, len(words) * BLOCK_OUT
        groups = words.shape[1] * BLOCK_IN // group if group in (32, 64) else scales.shape[1]

        def blocked(values: Tensor) -> Tensor:
            values = values.to(device, torch.float16)
            padding = (0, groups - values.shape[1], 0, outs - weight.out_features)
            values = functional.pad(values, padding).view(-1, BLOCK_OUT, groups).transpose(1, 2)
            # not contiguous(): of one group that leaves strides as they are, and pairs cannot be viewed
            return torch.empty(values.shape, dtype=values.dtype, device=device).copy_(values)

        order = None if weight.order is None else weight.order.to(device, torch.int32)
        return cls(
            words,
            blocked(scales),
            None if zeros is None else blocked(zeros),
            order,
            weight.out_features,
            weight.in_features,
            group,
        )

    @property
    def kernel_group(self) -> int:
        """The group size as the kernels use it: a single group shorter than a block counts as a block."""
        return self.group_size if self.group_size in (32, 64) else max(BLOCK_IN, self.group_size)

    @property
    def blocks(self) -> int:
        """How many blocks of 128 inputs there are."""
        return self.words.shape[1]


def takes(weight: QuantizedWeight | GptqWeight) -> bool:
    """Tell whether the layout holds a weight: groups of 32, 64, a multiple of 128 inputs, or one group."""
    group = weight.group_size
    return group in (32, 64) or group % BLOCK_IN == 0 or group == weight.in_features


def stack(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Stack weights of the same inputs by outputs, so that one product serves them all.

    Their group sizes and orders of columns must be the same.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    assert all(part.group_size == first.group_size for part in parts), "group sizes differ"
    assert all(_same(part.order, first.order) for part in parts), "orders of columns differ"
    zeros = _join_zeros([part.zeros for part in parts], parts)
    q, scales = torch.cat([part.q for part in parts]), torch.cat([part.scales for part in parts])
    return QuantizedWeight(q, scales, first.group_size, zeros, first.order)


def unpack_reference(weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """Return scale * (q - zero), formed in float32 and rounded once, as [out, in]."""
    nibbles = [(weight.words >> shift) & 15 for shift in range(0, 32, 4)]
    halves = torch.stack([torch.stack(nibbles[:4]), torch.stack(nibbles[4:])], dim=-1)
    q = halves.permute(1, 3, 2, 0, 4, 5).flatten(2).flatten(0, 1).float()  # [outs, in]
    group = (torch.arange(q.shape[1], device=q.device) // weight.group_size).clamp(
        max=weight.scales.shape[1] - 1
    )

    def spread(values: Tensor) -> Tensor:
        return values.transpose(1, 2).flatten(0, 1).float()[:, group]  # [outs, in]

    zeros = ZERO_POINT if weight.zeros is None else spread(weight.zeros)
    dense = ((q - zeros) * spread(weight.scales))[: weight.out_features, : weight.in_features].to(dtype)
    if weight.order is None:
        return dense
    return torch.empty_like(dense).index_copy_(1, weight.order.long(), dense)


def _padded(outputs: int) -> int:
    return -(-outputs // PADDED_OUT) * PADDED_OUT


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _join_zeros(
    zeros: Sequence[Tensor | None], parts: Sequence[QuantizedWeight | GptqWeight]
) -> Tensor | None:
    """Stack zero points [out, groups]; where only some parts have any, the others' are 8."""
    if all(each is None for each in zeros):
        return None
    filled = []
    for each, part in zip(zeros, parts, strict=True):
        shape = (part.out_features, part.in_features // part.group_size)
        eights = torch.full(shape, ZERO_POINT, dtype=torch.uint8, device=part.scales.device)
        filled.append(eights if each is None else each)
    return torch.cat(filled)
