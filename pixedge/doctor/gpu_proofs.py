"""Each GPU kernel against its reference, on small random operands, on the device that answers are made on."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pixedge.doctor.finding import Finding, Subject, red, yellow
from pixedge.doctor.proof import Proof, prove
from pixedge.errors import PixedgeError

if TYPE_CHECKING:
    from pixedge.kernels.cuda.int4_weight import Int4Weight
    from pixedge.kernels.cuda.pages import LayerPages

_FINE = 0.01


def check_gpu_kernels(subject: Subject) -> Iterator[Finding]:
    """Try all kernels on the GPU; nothing where none is used."""
    if not subject.gpu:
        return
    from pixedge.kernels.cuda import available, launcher

    device = torch.device("cuda", 0)
    if not torch.cuda.is_available() or not available(device):
        yield yellow(
            "gpu kernels",
            "cannot be used on this card, or triton is missing: torch serves",
            "see the lines about torch and triton",
        )
        return
    try:
        launcher.prepare()
    except PixedgeError as error:
        detail, _, advice = str(error).partition("; ")
        yield red("gpu kernels", detail, advice)
        return
    yield from prove(list(gpu_proofs(device)), "gpu")


def gpu_proofs(device: torch.device) -> Iterator[Proof]:
    """List the kernels, on operands on ``device``."""
    yield Proof("4-bit, few rows", _FINE, partial(_few_rows, device))
    yield Proof("4-bit, unpacking", _FINE, partial(_unpack, device))
    yield Proof("8-bit head", _FINE, partial(_head, device))
    yield Proof("sum and norm", _FINE, partial(_norm, device))
    yield Proof("gate", _FINE, partial(_gate, device))
    for bits in (16, 8):
        yield Proof(f"rotation and {bits}-bit pages", _FINE, partial(_rotate, device, bits))
        yield Proof(f"attention over {bits}-bit pages", _FINE, partial(_attend, device, bits))
        yield Proof(f"prompts over {bits}-bit pages", _FINE, partial(_attend_many, device, bits))
    yield Proof("greedy choice", 0.0, partial(_greedy, device))
    yield Proof("draw", 0.0, partial(_draw, device))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weight(device: torch.device) -> "Int4Weight":
    from pixedge.kernels.cuda.int4_weight import Int4Weight
    from pixedge.packing import QuantizedWeight

    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 16, (96, 256), dtype=torch.uint8, generator=generator)
    scales = ((0.5 + torch.rand(96, 2, generator=generator)) / 74).bfloat16().float()
    return Int4Weight.pack(QuantizedWeight(q, scales, 128), device)


def _few_rows(device: torch.device) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import int4

    weight, x = _weight(device), _random(3, 256).to(device, torch.bfloat16)
    return int4.few_rows(x, weight).sum(0), int4.few_rows_reference(x, weight)


def _unpack(device: torch.device) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import unpacking

    weight, x = _weight(device), _random(20, 256).to(device, torch.bfloat16)
    scratch = torch.empty(96 * 256, dtype=x.dtype, device=device)
    return unpacking.many_rows(x, weight, scratch), unpacking.many_rows_reference(x, weight)


def _head(device: torch.device) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import int8
    from pixedge.kernels.int8 import quantize_rows

    weight, scales = (each.to(device) for each in quantize_rows(_random(96, 256, seed=1)))
    x = _random(3, 256).to(device, torch.bfloat16)
    return int8.head(x, weight, scales), int8.head_reference(x, weight, scales)


def _norm(device: torch.device) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import norm

    residual = _random(3, 200).to(device, torch.bfloat16)
    partials, weight = _random(2, 3, 200, seed=1).to(device), _random(200, seed=2).to(device, torch.bfloat16)
    total, expected = norm.add_norm_reference(residual, partials, weight, 1e-5)
    out = torch.empty_like(expected)
    norm.add_norm(residual, partials, weight, 1e-5, out)
    return torch.stack([residual, out]), torch.stack([total, expected])


def _gate(device: torch.device) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import activation

    partials = _random(2, 3, 200).to(device)
    out = torch.empty(3, 100, dtype=torch.bfloat16, device=device)
    return activation.silu_mul(partials, out), activation.silu_mul_reference(partials, torch.bfloat16)


def _pages(device: torch.device, bits: int) -> "LayerPages":
    from pixedge.kernels.cuda.pages import PAGE, LayerPages

    shape = (6, 2, PAGE, 64)
    if bits == 16:
        keys, values = (_random(*shape, seed=seed).to(device, torch.bfloat16) for seed in (3, 4))
        return LayerPages(keys, values)
    keys, values = (
        (_random(*shape, seed=seed) * 40).clamp(-127, 127).to(device, torch.int8) for seed in (3, 4)
    )
    scales = [
        (0.01 + 0.02 * _random(*shape[:3], seed=seed).abs()).to(device, torch.float16) for seed in (5, 6)
    ]
    return LayerPages(keys, values, *scales)


def _tables(device: torch.device) -> Tensor:
    return torch.tensor([[2, 0, 5], [4, 1, 3]], dtype=torch.int32, device=device)


def _rotate(device: torch.device, bits: int) -> tuple[Tensor, Tensor]:
    """Compare the turned queries and all that lies in the pages afterwards."""
    from pixedge.kernels.cuda import rotary

    heads, tokens = 4, 3
    qkv = _random(2, tokens, (heads + 4) * 64).to(device)
    angle = _random(tokens, 32, seed=1).to(device)
    cos, sin = angle.cos(), angle.sin()
    positions = torch.tensor([0, 17, 40], dtype=torch.int32, device=device)
    rows = torch.tensor([0, 1, 1], dtype=torch.int32, device=device)
    queries = torch.empty(tokens, heads, 64, dtype=torch.bfloat16, device=device)
    one, other = _pages(device, bits), _pages(device, bits)
    places = (cos, sin, positions, rows, _tables(device))
    rotary.rotate_and_write(qkv, *places, one, queries)
    expected = rotary.rotate_and_write_reference(qkv, *places, other, torch.bfloat16)
    return _all(queries, one), _all(expected, other)


def _all(queries: Tensor, pages: "LayerPages") -> Tensor:
    parts = [queries.float().flatten()]
    for stored, scales in ((pages.keys, pages.key_scales), (pages.values, pages.value_scales)):
        parts.append(
            (stored.float() if scales is None else stored.float() * scales.float()[..., None]).flatten()
        )
    return torch.cat(parts)


def _attend(device: torch.device, bits: int) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import decoding

    q = _random(2, 4, 64).to(device, torch.bfloat16)
    lengths = torch.tensor([40, 17], dtype=torch.int32, device=device)
    parts = decoding.Parts.allocate(2, 4, 64, 2, device, parts=2)
    inputs = (q, _pages(device, bits), _tables(device), lengths)
    return decoding.attend(*inputs, parts, torch.empty_like(q)), decoding.attend_reference(*inputs)


def _attend_many(device: torch.device, bits: int) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import prefill

    q = _random(20, 4, 64).to(device, torch.bfloat16)
    starts, firsts = (torch.tensor(each, dtype=torch.int32, device=device) for each in ([9, 0], [0, 15, 20]))
    inputs = (q, _pages(device, bits), _tables(device), starts, firsts)
    return prefill.attend_many(*inputs, torch.empty_like(q), 15), prefill.attend_many_reference(*inputs)


def _greedy(device: torch.device) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import sampling

    logits = (3 * _random(3, 5000)).to(device)
    out = torch.empty(3, dtype=torch.int32, device=device)
    room = sampling.Room.allocate(3, 5000, device)
    return sampling.greedy(logits, room, out), sampling.greedy_reference(logits)


def _draw(device: torch.device) -> tuple[Tensor, Tensor]:
    from pixedge.kernels.cuda import sampling

    logits = (3 * _random(3, 5000)).to(device)

    def floats(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    draws = sampling.Draws(
        temperatures=floats(0.0, 0.7, 1.0),
        top_k=torch.tensor([0, 40, 0], dtype=torch.int32, device=device),
        top_p=floats(1.0, 1.0, 0.9),
        min_p=floats(0.0, 0.0, 0.0),
        uniforms=floats(0.5, 0.31, 0.62),
    )
    likely, out = (torch.empty(3, dtype=torch.int32, device=device) for _ in range(2))
    sampling.greedy(logits, sampling.Room.allocate(3, 5000, device), likely)
    ordered = sampling.Sorted.allocate(3, 5000, device)
    ordered.sort(logits, range(3))
    return sampling.draw(logits, draws, likely, out, ordered), sampling.draw_reference(logits, draws)
