"""Each CPU kernel against its reference, on small random operands: what the tests do at length, in a second.

Products round their operands to 8 bits or to bfloat16, so bounds are some percent; a kernel that is wrong is
off by all of it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pixedge.doctor.finding import Finding, Subject
from pixedge.doctor.proof import Proof, prove
from pixedge.kernels import int4, int8
from pixedge.kernels.attention import PAGE, Stored, attend_pages, causal_mask, write_pages
from pixedge.kernels.cpu.compiled import library, variant
from pixedge.kernels.cpu.flash import flash_pages
from pixedge.kernels.cpu.prompt_rows import gate_rows, norm_rows, turn_rows
from pixedge.kernels.vision import fast, reference
from pixedge.packing import QuantizedWeight
from pixedge.rope import apply_rotary, rotary_1d

_CPU = torch.device("cpu")
_ROUGH, _FINE = 0.03, 0.01


def check_cpu_kernels(subject: Subject) -> Iterator[Finding]:
    """Try all kernels that this CPU runs."""
    torch.manual_seed(0)
    return prove(list(cpu_proofs()), "cpu")


def cpu_proofs() -> Iterator[Proof]:
    """List the kernels, with those that this machine does not have."""
    yield Proof("4-bit, one row", _ROUGH, lambda: _int4(1))
    yield Proof("4-bit, 40 rows", _ROUGH, lambda: _int4(40))
    yield Proof("4-bit with zero points", _ROUGH, lambda: _int4(3, zeros=True))
    yield Proof("8-bit head", _ROUGH, _int8)
    yield Proof("decoder layer, one token", _ROUGH, lambda: _layer(1))
    yield Proof("decoder layer, a prompt", _ROUGH, lambda: _layer(40))
    yield Proof("attention over 16-bit pages", _FINE, lambda: _flash(16))
    yield Proof("attention over 8-bit pages", _FINE, lambda: _flash(8))
    yield Proof("norm of a prompt", _FINE, _norm)
    yield Proof("rotation of a prompt", _FINE, _turn)
    yield Proof("gate of a prompt", _FINE, _gate)
    yield Proof("encoder's attention", _ROUGH, _encoder_attention)
    yield Proof("encoder's layer", _ROUGH, _encoder_layer)
    yield Proof("encoder's linear", _ROUGH, _encoder_linear)


def _weight(outputs: int, inputs: int, zeros: bool = False, group: int = 64) -> QuantizedWeight:
    q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    scales = (0.5 + torch.rand(outputs, inputs // group)) / (4.6 * inputs**0.5)
    points = torch.randint(5, 11, scales.shape, dtype=torch.uint8) if zeros else None
    return QuantizedWeight(q, scales.bfloat16().float(), group, points)


def _int4(rows: int, zeros: bool = False) -> tuple[Tensor, Tensor]:
    weight, x = _weight(96, 256, zeros), torch.randn(rows, 256).bfloat16()
    kernel, plain = int4.choose(torch.bfloat16, _CPU, 96, 64), int4.Reference()
    found = kernel.matmul(x, *kernel.repack(weight, torch.bfloat16, _CPU))
    return found, plain.matmul(x.float(), *plain.repack(weight, torch.float32, _CPU))


def _int8() -> tuple[Tensor, Tensor]:
    weight, x = torch.randn(96, 256) / 16, torch.randn(3, 256).bfloat16()
    kernel, plain = int8.choose(torch.bfloat16, _CPU, 256), int8.Reference()
    return kernel.matmul(x, *kernel.repack(weight, _CPU)), plain.matmul(
        x.float(), *plain.repack(weight, _CPU)
    )


def _layer(tokens: int) -> tuple[Tensor, Tensor] | None:
    """Run a whole layer with its kernels, and the same layer in float32 with weights unpacked."""
    if library() is None:
        return None
    from torch import nn

    from pixedge.config import DecoderConfig
    from pixedge.decoder import DecoderLayer
    from pixedge.kernels.cpu.fused_layer import fuse
    from pixedge.kv_cache import PagedStep, PagePool
    from pixedge.linear import Int4Linear

    config = DecoderConfig(
        dim=128, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=256, vocab_size=64,
        norm_eps=1e-5, rope_theta=1e4, context=256,
    )  # fmt: skip
    weights: list[QuantizedWeight] = []

    def packed(inputs: int, outputs: int) -> nn.Module:
        weights.append(_weight(outputs, inputs))
        return Int4Linear(weights[-1], torch.bfloat16, _CPU)

    def dense(inputs: int, outputs: int) -> nn.Module:
        linear = nn.Linear(inputs, outputs, bias=False)
        plain = int4.Reference()
        linear.weight = nn.Parameter(plain.dequantize(*plain.repack(weights.pop(0), torch.float32, _CPU)))
        return linear

    fast_layer, plain_layer = DecoderLayer(config, packed), DecoderLayer(config, dense)
    for norm in (fast_layer.input_layernorm, fast_layer.post_attention_layernorm):
        norm.to(torch.bfloat16)
    fuse([fast_layer])
    x = torch.randn(tokens, config.dim).bfloat16()
    angles = rotary_1d(torch.arange(tokens), config.head_dim, config.rope_theta)
    tables = torch.arange(4, dtype=torch.int32)[None].contiguous()
    spans = torch.zeros(1, dtype=torch.int32), torch.full((1,), tokens, dtype=torch.int32)
    outcome = []
    with torch.inference_mode():
        for layer, states in ((fast_layer, x), (plain_layer, x.float())):
            pool = PagePool.allocate(config, 4, states.dtype, _CPU)
            outcome.append(layer(0, states, *angles, PagedStep(pool, tables, *spans)) - x.float())
    return outcome[0], outcome[1]


def _flash(bits: int) -> tuple[Tensor, Tensor] | None:
    """Attend with 20 tokens behind 30; the reference reads the same pages."""
    tokens, start, heads, kv_heads, head_dim = 20, 30, 4, 2, 64
    table = torch.tensor([3, 0, 2, 1], dtype=torch.int32)
    places = torch.arange(start + tokens)
    sides: list[Stored] = []
    for _ in range(2):
        shape = (4, kv_heads, PAGE, head_dim)
        stored = torch.zeros(shape, dtype=torch.int8 if bits == 8 else torch.bfloat16)
        scales = torch.zeros(shape[:3], dtype=torch.float16) if bits == 8 else None
        x = torch.randn(start + tokens, kv_heads, head_dim).bfloat16()
        write_pages(stored, scales, x, table[places // PAGE].long(), places % PAGE)
        sides.append((stored, scales))
    q = torch.randn(tokens, heads, head_dim).bfloat16()
    found = flash_pages(q, sides[0], sides[1], table, start)
    if found is None:
        return None
    mask = causal_mask(start, tokens, torch.bfloat16, _CPU)
    return found, attend_pages(q, sides[0], sides[1], table, start, mask)


def _norm() -> tuple[Tensor, Tensor] | None:
    if variant() != "amx":
        return None
    x, weight = torch.randn(20, 128).bfloat16(), torch.rand(128)
    return norm_rows(x, weight, 1e-5), torch.nn.functional.rms_norm(x.float(), (128,), weight, 1e-5)


def _turn() -> tuple[Tensor, Tensor] | None:
    if variant() != "amx":
        return None
    x, (cos, sin) = torch.randn(20, 2, 64).bfloat16(), rotary_1d(torch.arange(20), 64, 1e4)
    return turn_rows(x.clone(), cos.contiguous(), sin.contiguous()), apply_rotary(x.float(), cos, sin)


def _gate() -> tuple[Tensor, Tensor] | None:
    if variant() != "amx":
        return None
    gate, up = torch.randn(2, 20, 128).bfloat16()
    return gate_rows(gate.clone(), up), torch.nn.functional.silu(gate.float()) * up.float()


def _encoder_attention() -> tuple[Tensor, Tensor] | None:
    if fast.vision_library() is None:
        return None
    operands = (*torch.randn(3, 40, 2, 64), *_angles(40, 64))
    return fast.attention(*operands), reference.attention(*operands)


def _encoder_layer() -> tuple[Tensor, Tensor] | None:
    if fast.vision_library() is None:
        return None
    dim, ffn_dim = 128, 256
    shapes = [(dim,), *[(dim, dim)] * 4, (dim,), *[(ffn_dim, dim)] * 2, (dim, ffn_dim)]
    weights = reference.EncoderLayerWeights(
        *(
            (torch.randn(shape) * shape[-1] ** -0.5 if len(shape) > 1 else torch.ones(shape)).half()
            for shape in shapes
        )
    )
    x, angles = torch.randn(40, dim), _angles(40, 64)
    return (
        fast.encoder_layer(x, *angles, weights, 2, 1e-5) - x,
        reference.encoder_layer(x, *angles, weights, 2, 1e-5) - x,
    )


def _encoder_linear() -> tuple[Tensor, Tensor] | None:
    if fast.vision_library() is None:
        return None
    x, weight, bias = torch.randn(40, 128), (torch.randn(96, 128) / 11).half(), torch.randn(96).half()
    return fast.linear(x, weight, bias, gelu=True), reference.linear(x, weight, bias, gelu=True)


def _angles(patches: int, head_dim: int) -> tuple[Tensor, Tensor]:
    turned = torch.rand(patches, head_dim // 2) * 6
    return turned.cos(), turned.sin()
