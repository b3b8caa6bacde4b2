"""One decoding step of the whole decoder: one token of each of up to 16 sequences, from ids to chosen ids.

Everything a step reads and writes lies in buffers that are made once, so that the step can be captured as a
CUDA graph and replayed. What one kernel leaves as partial sums the next one adds up on its way: a layer is
nine kernels and no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.kernels.cuda import activation, decoding, int4, int8, norm, rotary, sampling
from pixedge.kernels.cuda.int4 import Int4Weight
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.packing import QuantizedWeight
from pixedge.rope import frequencies


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights; projections that read the same input are stacked by outputs.

    input_norm, post_norm: [dim]. qkv: queries, keys, values. gate_up: gate, up.
    """

    input_norm: Tensor
    qkv: Int4Weight
    o: Int4Weight
    post_norm: Tensor
    gate_up: Int4Weight
    down: Int4Weight


@dataclass(frozen=True)
class StepWeights:
    """A decoder's weights and the numbers that go with them.

    embeddings: [vocab, dim] on the device, or None where they are in host memory and the caller writes their
    rows to ``StepBuffers.residual``. norm: [dim]. head: int8 [vocab, dim], head_scales: bfloat16 [vocab].
    Norms and embeddings are of the activations' type, float16 or bfloat16.
    """

    layers: tuple[LayerWeights, ...]
    embeddings: Tensor | None
    norm: Tensor
    head: Tensor
    head_scales: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float

    @classmethod
    def assemble(
        cls,
        config: DecoderConfig,
        linear: Callable[[str], QuantizedWeight],
        norm: Callable[[str], Tensor],
        head: tuple[Tensor, Tensor],
        embeddings: Tensor | None,
    ) -> Self:
        """Build a decoder's weights layer by layer, so that no more than one layer exists unpacked.

        linear and norm give what a canonical name stands for ("layers.0.self_attn.q_proj", "norm"), norms on
        the device and of the activations' type. head: int8 [vocab, dim] and bfloat16 [vocab], see ``int8``.
        """
        device = norm("norm").device

        def packed(*names: str) -> Int4Weight:
            return Int4Weight.pack(int4.stack([linear(name) for name in names]), device)

        layers = []
        for index in range(config.n_layers):
            attention, mlp = f"layers.{index}.self_attn.", f"layers.{index}.mlp."
            layers.append(
                LayerWeights(
                    norm(f"layers.{index}.input_layernorm"),
                    packed(*(f"{attention}{name}_proj" for name in "qkv")),
                    packed(f"{attention}o_proj"),
                    norm(f"layers.{index}.post_attention_layernorm"),
                    packed(f"{mlp}gate_proj", f"{mlp}up_proj"),
                    packed(f"{mlp}down_proj"),
                )
            )
        return cls(
            tuple(layers),
            embeddings,
            norm("norm"),
            *head,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.norm_eps,
            config.rope_theta,
        )

    @property
    def dim(self) -> int:
        """The width of the residual stream."""
        return self.norm.shape[0]

    def splits(self, rows: int) -> dict[str, int]:
        """Return how many partial sums each product of a layer makes at ``rows`` rows."""
        layer = self.layers[0]
        products = {"qkv": layer.qkv, "o": layer.o, "gate_up": layer.gate_up, "down": layer.down}
        return {name: int4.splits_for(weight, rows) for name, weight in products.items()}


@dataclass(frozen=True)
class StepBuffers:
    """What a step of up to ``rows`` sequences reads and writes.

    ids, positions: int32 [rows]; position -1 stands for no sequence. tables: int32 [rows, max_pages].
    residual: float32 [rows, dim]. logits: float32 [rows, vocab]. chosen: int32 [rows], the most likely ids.
    The rest is scratch; partials is flat and serves every product in turn.
    """

    ids: Tensor
    positions: Tensor
    tables: Tensor
    residual: Tensor
    logits: Tensor
    chosen: Tensor
    lengths: Tensor
    sequences: Tensor
    embedded: Tensor
    normed: Tensor
    rates: Tensor
    angles: Tensor
    cos: Tensor
    sin: Tensor
    partials: Tensor
    queries: Tensor
    attended: Tensor
    activated: Tensor
    parts: decoding.Parts
    room: sampling.Room

    @classmethod
    def allocate(cls, weights: StepWeights, rows: int, max_pages: int) -> Self:
        """Make the buffers on the weights' device."""
        device, dtype = weights.norm.device, weights.norm.dtype
        heads, head_dim = weights.heads, weights.head_dim
        vocab, layer = weights.head.shape[0], weights.layers[0]
        # Every smaller batch is a part of these buffers, and may split its products further.
        partials = 0
        for batch in range(1, rows + 1):
            for name, count in weights.splits(batch).items():
                partials = max(partials, count * batch * getattr(layer, name).out_features)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        def integers(*shape: int, value: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.int32, device=device)

        return cls(
            ids=integers(rows, value=0),
            positions=integers(rows, value=-1),
            tables=integers(rows, max_pages, value=0),
            residual=torch.zeros(rows, weights.dim, device=device),
            logits=empty(rows, vocab),
            chosen=integers(rows, value=0),
            lengths=integers(rows, value=0),
            sequences=torch.arange(rows, dtype=torch.int32, device=device),
            embedded=empty(rows, weights.dim, dtype=dtype),
            normed=empty(rows, weights.dim, dtype=dtype),
            rates=frequencies(head_dim, weights.rope_theta, device),
            angles=empty(rows, head_dim // 2),
            cos=empty(rows, head_dim // 2),
            sin=empty(rows, head_dim // 2),
            partials=empty(partials),
            queries=empty(rows, heads, head_dim, dtype=dtype),
            attended=empty(rows, heads, head_dim, dtype=dtype),
            activated=empty(rows, layer.down.in_features, dtype=dtype),
            parts=decoding.Parts.allocate(rows, heads, head_dim, weights.kv_heads, device),
            room=sampling.Room.allocate(rows, vocab, device),
        )

    def first(self, weights: StepWeights, rows: int) -> Self:
        """Return the part of these buffers for ``rows`` sequences, with scratch of its own for attention."""
        device = weights.norm.device
        parts = decoding.Parts.allocate(rows, weights.heads, weights.head_dim, weights.kv_heads, device)
        room = sampling.Room(self.room.best[:rows], self.room.ids[:rows])
        own = {
            name: value if name in ("rates", "partials") else value[:rows]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return type(self)(**own, parts=parts, room=room)


def run_step(weights: StepWeights, pages: Sequence[LayerPages], buffers: StepBuffers) -> None:
    """Run one token of each sequence through the decoder and into its pages; fill logits and chosen.

    pages: each layer's. A row whose position is -1 writes nothing and its results mean nothing.
    """
    b, rows, eps = buffers, len(buffers.ids), weights.eps
    splits = weights.splits(rows)

    def product(x: Tensor, weight: Int4Weight, name: str) -> Tensor:
        shape = (splits[name], rows, weight.out_features)
        out = b.partials[: shape[0] * shape[1] * shape[2]].view(shape)
        return int4.few_rows(x, weight, out, splits[name])

    if weights.embeddings is not None:
        torch.index_select(weights.embeddings, 0, b.ids, out=b.embedded)
        b.residual.copy_(b.embedded)
    torch.add(b.positions, 1, out=b.lengths)
    torch.mul(b.positions[:, None], b.rates, out=b.angles)
    torch.cos(b.angles, out=b.cos)
    torch.sin(b.angles, out=b.sin)
    added: Tensor | None = None  # what the last product adds to the residual stream
    for layer, held in zip(weights.layers, pages, strict=True):
        norm.add_norm(b.residual, added, layer.input_norm, eps, b.normed)
        qkv = product(b.normed, layer.qkv, "qkv")
        rotary.rotate_and_write(qkv, b.cos, b.sin, b.positions, b.sequences, b.tables, held, b.queries)
        decoding.attend(b.queries, held, b.tables, b.lengths, b.parts, b.attended)
        added = product(b.attended.view(rows, -1), layer.o, "o")
        norm.add_norm(b.residual, added, layer.post_norm, eps, b.normed)
        activation.silu_mul(product(b.normed, layer.gate_up, "gate_up"), b.activated)
        added = product(b.activated, layer.down, "down")
    norm.add_norm(b.residual, added, weights.norm, eps, b.normed)
    int8.head(b.normed, weights.head, weights.head_scales, b.logits)
    sampling.greedy(b.logits, b.room, b.chosen)
