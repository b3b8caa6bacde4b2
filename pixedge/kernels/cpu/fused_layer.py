"""A decoder layer over a few tokens as one call of the library, in place of some twenty of torch's."""

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pixedge.decoder import Attend, DecoderLayer
from pixedge.kernels.cpu.compiled import Layer, Step, library, pointer
from pixedge.kernels.cpu.products import BLOCK, MOST_ROWS, Int4Cpu, int4_weight
from pixedge.kernels.cpu.prompt_layer import PromptLayer
from pixedge.kv_cache import PagedStep
from pixedge.linear import Int4Linear

LINEARS = 7
WIDEST_HEAD = 512
"""Channels of a head that the library has room for."""


class FusedLayer:
    """Norm, projections, rotation, cache, attention and feed-forward of one layer in one task.

    The reference is the layer's own ``forward``. Here everything between two products is float32, products
    read activations in 8 bits (see ``products``), and only the result is rounded to bfloat16.
    """

    def __init__(self, layer: DecoderLayer, steps: "Steps") -> None:
        """Describe a layer that ``fits`` to the library; ``steps`` is shared by a decoder's layers."""
        linears = _linears(layer)
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        # The structure holds addresses only; these hold the memory.
        self._weights = [(linear.weight, linear.scales, linear.zeros) for linear in linears]
        self._norms = [norm.weight.float().contiguous() for norm in norms]
        packed = [int4_weight(*parts) for parts in self._weights]
        dim, head_dim = packed[0].inputs, layer.self_attn.head_dim
        self._layer = Layer(
            *packed,
            *map(pointer, self._norms),
            dim,
            packed[0].outputs // head_dim,
            packed[1].outputs // head_dim,
            head_dim,
            packed[4].outputs,
            norms[0].eps,
        )
        self._steps = steps
        self._prompt = PromptLayer(packed, self._norms, head_dim, norms[0].eps)

    @staticmethod
    def fits(layer: DecoderLayer) -> bool:
        """Tell whether the library takes a layer: packed weights, inputs in their order, equal groups."""
        linears = _linears(layer)
        if len(linears) < LINEARS or not all(
            isinstance(linear.kernel, Int4Cpu) and linear.order is None for linear in linears
        ):
            return False
        groups = [linear.scales.shape[1] for linear in linears]
        head_dim = layer.self_attn.head_dim
        return (
            len(set(groups[:3])) == len(set(groups[4:6])) == 1  # those that share activations
            and layer.input_layernorm.eps == layer.post_attention_layernorm.eps
            and head_dim % 2 == 0
            and head_dim <= WIDEST_HEAD
        )

    def takes(self, x: Tensor, attend: Attend) -> bool:
        """Tell whether a step is for the library: over pages that it reads, many tokens only on tiles."""
        return (
            isinstance(attend, PagedStep)
            and len(x) > 0
            and (len(x) <= MOST_ROWS or PromptLayer.usable())
            and x.dtype == torch.bfloat16
            and attend.pool.keys.dtype in (torch.bfloat16, torch.int8)
            and library() is not None
        )

    def __call__(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: PagedStep) -> Tensor:
        """Map x bfloat16 [tokens, dim] to [tokens, dim], as ``DecoderLayer.forward``."""
        opened = library()
        assert opened is not None and x.shape == (attend.tokens, self._layer.dim)
        if len(x) > MOST_ROWS or (attend.prompt and PromptLayer.usable()):
            return self._prompt(layer, x, cos, sin, attend)
        step = self._steps.lay_out(self._layer, cos, sin, attend)
        x = x.contiguous()
        y = torch.empty_like(x)
        opened.pixedge_layer(ctypes.byref(self._layer), ctypes.byref(step), layer, pointer(x), pointer(y))
        return y


def _linears(layer: DecoderLayer) -> list[Int4Linear]:
    """Return those of a layer's linears that are in 4 bits, in the order of ``Layer``."""
    attention, mlp = layer.self_attn, layer.mlp
    found = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    found += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return [linear for linear in found if isinstance(linear, Int4Linear)]


class Steps:
    """What the layers of a decoder share in one step: its layout and scratch memory, made by the first."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[PagedStep, tuple[Step, tuple[Tensor, ...]]] = WeakKeyDictionary()

    def lay_out(self, layer: Layer, cos: Tensor, sin: Tensor, attend: PagedStep) -> Step:
        """Return the step that ``attend`` lays out; cos, sin: float32 [tokens, head_dim / 2]."""
        known = self._known.get(attend)
        if known is not None and known[1][0] is cos and known[1][1] is sin:
            return known[0]
        pool = attend.pool
        _, pages, kv_heads, page, head_dim = pool.keys.shape
        assert page == BLOCK and (kv_heads, head_dim) == (layer.kv_heads, layer.head_dim), pool.keys.shape
        assert pool.values.shape == pool.keys.shape and pool.values.dtype == pool.keys.dtype
        assert (pool.keys.dtype == torch.int8) == (pool.key_scales is not None)
        angles = (attend.tokens, head_dim // 2)
        assert cos.shape == sin.shape == angles and cos.dtype == sin.dtype == torch.float32
        ends = attend.starts + attend.counts
        used = -(-int(ends.max()) // page)
        assert used <= attend.tables.shape[1]
        held = attend.tables[torch.arange(attend.tables.shape[1]) < (ends[:, None] + page - 1) // page]
        assert int(held.min()) >= 0 and int(held.max()) < pages, "a page that the pool does not have"
        turns = (cos.contiguous(), sin.contiguous())
        step = Step(
            attend.tokens,
            len(attend.counts),
            attend.tables.shape[1],
            *map(pointer, (attend.tables, attend.starts, attend.counts, *turns)),
            *map(pointer, (pool.keys, pool.values, pool.key_scales, pool.value_scales)),
            pages,
        )
        opened = library()
        assert opened is not None
        size = opened.pixedge_step_bytes(ctypes.byref(layer), ctypes.byref(step))
        scratch = torch.empty(size, dtype=torch.uint8)
        assert scratch.data_ptr() % 64 == 0
        step.scratch = pointer(scratch)
        self._known[attend] = (step, (cos, sin, *turns, scratch))
        return step


def fuse(layers: list[DecoderLayer]) -> None:
    """Give the layers that fit their fused form, for steps of few tokens."""
    steps = Steps()
    for layer in layers:
        if library() is not None and FusedLayer.fits(layer):
            layer.fused = FusedLayer(layer, steps)
