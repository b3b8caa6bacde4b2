"""The C kernels of the vision encoder: where they are, and each as a function of tensors.

The encoder itself reaches them as operators of ONNX Runtime (``onnx_operators.c``). The functions here pack
the weights with each call; tests hold them to ``reference.py``.
"""

import ctypes
from ctypes import c_float, c_int, c_long, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from pixedge.kernels.cpu.compiled import library, pointer, variant
from pixedge.kernels.vision.reference import EncoderLayerWeights

WIDEST_HEAD = 128
"""The largest head_dim; it is also even."""

_VARIANTS = {"avx512": 1, "amx": 2}
_SIGNATURES = {
    "pixedge_vision_best": (c_int, []),
    "pixedge_vision_use": (None, [c_int]),
    "pixedge_encoder_attention": (c_int, [c_void_p] * 5 + [c_long] * 3 + [c_void_p]),
    "pixedge_encoder_layer_new": (c_void_p, [c_long, c_long, c_long, c_float, c_void_p]),
    "pixedge_encoder_layer_run": (c_int, [c_void_p] * 4 + [c_long, c_void_p]),
    "pixedge_encoder_layer_free": (None, [c_void_p]),
    "pixedge_encoder_linear_new": (c_void_p, [c_long, c_long, c_int, c_void_p, c_void_p]),
    "pixedge_encoder_linear_run": (c_int, [c_void_p, c_void_p, c_long, c_void_p]),
    "pixedge_encoder_linear_free": (None, [c_void_p]),
}


def vision_library() -> ctypes.CDLL | None:
    """Return the library with the encoder's kernels chosen; None where this machine has none.

    They need AVX-512 with bfloat16, and use AMX where it is and PIXEDGE_CPU_KERNEL does not say avx512.
    """
    opened = library()
    wanted = _VARIANTS.get(variant())
    if opened is None or wanted is None:
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    if opened.pixedge_vision_best() < wanted:
        return None
    opened.pixedge_vision_use(wanted)
    return opened


def operators_file() -> Path | None:
    """Return the library that ONNX Runtime takes the operators from; None where they would not pay.

    They do on AMX. Without it, dot products of bfloat16 took longer than ONNX Runtime in float32 on the one
    kind of CPU that was measured.
    """
    opened = vision_library()
    return Path(opened._name) if opened is not None and variant() == "amx" else None


def set_threads(threads: int | None) -> None:
    """Use so many threads from the next kernel on; None means as many as torch uses."""
    opened = library()  # which sets torch's number
    if opened is not None and threads is not None:
        opened.pixedge_set_threads(threads)


def attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attend as reference.attention; all float32 and contiguous."""
    patches, heads, head_dim = q.shape
    assert q.shape == k.shape == v.shape and cos.shape == sin.shape == (patches, head_dim // 2)
    assert head_dim % 2 == 0 and head_dim <= WIDEST_HEAD
    assert all(tensor.dtype == torch.float32 for tensor in (q, k, v, cos, sin))
    out = torch.empty_like(q)
    inputs = map(pointer, (q, k, v, cos, sin))
    _check(_kernels().pixedge_encoder_attention(*inputs, heads, head_dim, patches, pointer(out)))
    return out


def encoder_layer(
    x: Tensor, cos: Tensor, sin: Tensor, weights: EncoderLayerWeights, heads: int, eps: float
) -> Tensor:
    """Run a layer as reference.encoder_layer; x, cos, sin float32, weights float16, all contiguous."""
    patches, dim = x.shape
    head_dim, ffn_dim = dim // heads, len(weights.gate)
    assert dim % heads == 0 and head_dim % 2 == 0 and head_dim <= WIDEST_HEAD
    assert cos.shape == sin.shape == (patches, head_dim // 2)
    assert all(tensor.dtype == torch.float32 for tensor in (x, cos, sin))
    shapes = [(dim,), *[(dim, dim)] * 4, (dim,), *[(ffn_dim, dim)] * 2, (dim, ffn_dim)]
    assert all(
        weight.dtype == torch.float16 and weight.shape == shape
        for weight, shape in zip(weights.tensors(), shapes, strict=True)
    )
    kernels = _kernels()
    places = (c_void_p * len(shapes))(*map(pointer, weights.tensors()))
    layer = kernels.pixedge_encoder_layer_new(dim, heads, ffn_dim, eps, places)
    _check(0 if layer else -1)
    out = torch.empty_like(x)
    failed = kernels.pixedge_encoder_layer_run(layer, *map(pointer, (x, cos, sin)), patches, pointer(out))
    kernels.pixedge_encoder_layer_free(layer)
    _check(failed)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Multiply as reference.linear; x float32, weight and bias float16, all contiguous."""
    out_features, in_features = weight.shape
    assert x.dtype == torch.float32 and x.shape == (len(x), in_features)
    assert weight.dtype == torch.float16
    assert bias is None or (bias.dtype == torch.float16 and bias.shape == (out_features,))
    kernels = _kernels()
    made = kernels.pixedge_encoder_linear_new(in_features, out_features, gelu, pointer(weight), pointer(bias))
    _check(0 if made else -1)
    out = torch.empty(len(x), out_features)
    failed = kernels.pixedge_encoder_linear_run(made, pointer(x), len(x), pointer(out))
    kernels.pixedge_encoder_linear_free(made)
    _check(failed)
    return out


def _kernels() -> ctypes.CDLL:
    opened = vision_library()
    assert opened is not None, "this machine has no kernels for the vision encoder"
    return opened


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("a kernel of the vision encoder found no memory")
