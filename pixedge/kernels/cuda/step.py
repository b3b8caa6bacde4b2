"""One decoding step of the whole decoder: one token of each of up to 16 sequences, from ids to chosen ids.

Everything a step reads and writes lies in buffers that are made once, so that the step can be captured as a
CUDA graph and replayed. What one kernel leaves as partial sums the next one adds up on its way: a layer is
ten kernels and no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.kernels.cuda import (
    activation,
    decoding,
    footprint,
    int4,
    int8,
    norm,
    rotary,
    sampling,
    tuning,
)
from pixedge.kernels.cuda.int4 import Int4Weight
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.packing import GptqWeight, QuantizedWeight
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
    config: DecoderConfig

    @classmethod
    def assemble(
        cls,
        config: DecoderConfig,
        linear: Callable[[str], QuantizedWeight | GptqWeight],
        norm: Callable[[str], Tensor],
        head: tuple[Tensor, Tensor],
        embeddings: Tensor | None,
    ) -> Self:
        """Build a decoder's weights layer by layer, so that no more than one layer exists twice.

        linear and norm give what a canonical name stands for ("layers.0.self_attn.q_proj", "norm"), norms on
        the device and of the activations' type; each is asked for once. head: int8 [vocab, dim] and bfloat16
        [vocab], see ``int8``. Raises UnsuitedWeightError as ``Int4Weight.repack`` does.
        """
        last = norm("norm")

        def packed(*names: str) -> Int4Weight:
            parts = [linear(name) for name in names]
            stored = [part for part in parts if isinstance(part, GptqWeight)]
            if len(stored) == len(parts):
                return Int4Weight.repack(stored, last.device)
            bytewise = [part.unpacked() if isinstance(part, GptqWeight) else part for part in parts]
            return Int4Weight.pack(int4.stack(bytewise), last.device)

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
        return cls(tuple(layers), embeddings, last, *head, config)

    def splits(self, rows: int) -> dict[str, int]:
        """Return how many partial sums each product of a layer makes at ``rows`` rows."""
        layer = self.layers[0]
        products = {"qkv": layer.qkv, "o": layer.o, "gate_up": layer.gate_up, "down": layer.down}
        return {name: int4.splits_for(weight, rows) for name, weight in products.items()}


@dataclass(frozen=True)
class StepBuffers:
    """What a step of up to ``rows`` sequences reads and writes; see ``footprint.step_shapes``.

    ids, positions: int32 [rows]; position -1 stands for no sequence. tables: int32 [rows, max_pages].
    residual: float32 [rows, dim]. logits: float32 [rows, vocab]. chosen: int32 [rows], the most likely ids.
    told: int32 [rows, 2], these and the bits of their log-probabilities. The rest is scratch; partials and
    parts are flat and serve every product and every layer in turn.
    """

    ids: Tensor
    positions: Tensor
    tables: Tensor
    residual: Tensor
    logits: Tensor
    chosen: Tensor
    told: Tensor
    lengths: Tensor
    sequences: Tensor
    embedded: Tensor
    normed: Tensor
    rates: Tensor
    angles: Tensor
    cos: Tensor
    sin: Tensor
    partials: Tensor
    parts: Tensor
    queries: Tensor
    attended: Tensor
    activated: Tensor
    best: Tensor
    best_ids: Tensor
    sums: Tensor
    totals: Tensor

    @classmethod
    def allocate(cls, weights: StepWeights, rows: int, max_pages: int) -> Self:
        """Make the buffers on the weights' device."""
        device, config = weights.norm.device, weights.config
        shapes = footprint.step_shapes(config, rows, max_pages, tuning.device(device))
        made = make(shapes, weights.norm.dtype, device)
        for name in ("ids", "tables", "residual", "chosen", "lengths"):
            made[name].zero_()
        made["positions"].fill_(-1)
        torch.arange(rows, dtype=torch.int32, device=device, out=made["sequences"])
        made["rates"].copy_(frequencies(config.head_dim, config.rope_theta, device))
        return cls(**made)

    def first(self, rows: int) -> Self:
        """Return the part of these buffers for ``rows`` sequences."""
        whole = ("rates", "partials", "parts")
        return type(self)(**{n: each if n in whole else each[:rows] for n, each in vars(self).items()})

    @property
    def room(self) -> sampling.Room:
        """What choosing the most likely ids writes."""
        return sampling.Room(self.best, self.best_ids, self.sums, self.totals)


def make(shapes: footprint.Shapes, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Make tensors of given shapes; ``dtype`` is that of the activations."""
    return {
        name: torch.empty(shape, dtype=dtype if kind == "half" else getattr(torch, kind), device=device)
        for name, (shape, kind) in shapes.items()
    }


def run_step(weights: StepWeights, pages: Sequence[LayerPages], buffers: StepBuffers) -> None:
    """Run one token of each sequence through the decoder and into its pages; fill logits, chosen and told.

    pages: each layer's. A row whose position is -1 writes nothing and its results mean nothing.
    """
    b, rows, config = buffers, len(buffers.ids), weights.config
    eps, splits = config.norm_eps, weights.splits(rows)
    count = tuning.parts(tuning.device(b.ids.device), rows, config.n_kv_heads)
    parts = decoding.Parts.within(b.parts, rows, config.n_heads, config.head_dim, count)

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
        decoding.attend(b.queries, held, b.tables, b.lengths, parts, b.attended)
        added = product(b.attended.view(rows, -1), layer.o, "o")
        norm.add_norm(b.residual, added, layer.post_norm, eps, b.normed)
        activation.silu_mul(product(b.normed, layer.gate_up, "gate_up"), b.activated)
        added = product(b.activated, layer.down, "down")
    norm.add_norm(b.residual, added, weights.norm, eps, b.normed)
    int8.head(b.normed, weights.head, weights.head_scales, b.logits)
    sampling.greedy(b.logits, b.room, b.chosen)
    sampling.tell(b.logits, b.chosen, b.totals, b.told)
