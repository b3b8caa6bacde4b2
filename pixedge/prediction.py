"""How long a model takes, from the bytes that a step moves, the products it makes and a machine's limits.

A stage takes at least bytes / bandwidth, and at least operations / rate; the greater of the two is its limit,
and names what binds it. What a kernel reaches of that limit is a share, measured or assumed, which the
machine brings with it; the prediction is the limit over the share. Nothing is loaded, and no torch is needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.image import image_grid
from pixedge.stored_weights import (
    Layout,
    encoder_weights,
    head_bytes,
    linear_weights,
    linears_bytes,
    token_bytes,
)

CHUNK = 512
"""Tokens of a prompt that one step takes (``EngineOptions.prefill_chunk``)."""

Binding = Literal["bandwidth", "operations"]


@dataclass(frozen=True)
class Machine:
    """What a device can do at best, and what of that is reached.

    bandwidth: bytes read per second. operations: of a 16-bit product per second, a multiplication and an
    addition being two. decode, prefill, encode: the share of the limit that is reached, 0 to 1; decode by
    answers at a time, for which the nearest smaller number counts. measured: whether the shares were measured
    on such a machine, or are assumed. attention: share of the bandwidth at which a decoding step reads keys
    and values of its context; None is what it reaches with the weights.
    """

    name: str
    bandwidth: float
    operations: float
    decode: tuple[tuple[int, float], ...]
    prefill: float
    encode: float
    measured: bool
    attention: float | None = None

    def decode_share(self, batch: int) -> float:
        """Return the share of the limit that a decoding step of ``batch`` answers reaches."""
        return next(share for least, share in reversed(self.decode) if batch >= least or least == 1)


@dataclass(frozen=True)
class Stage:
    """Work of one kind: bytes it must move between memory and processor, and operations it must make."""

    bytes: float
    operations: float

    def limit(self, machine: Machine) -> float:
        """Return the seconds below which no machine of these limits can be."""
        return max(self.bytes / machine.bandwidth, self.operations / machine.operations)

    def binding(self, machine: Machine) -> Binding:
        """Name what the limit comes from."""
        moving = self.bytes / machine.bandwidth
        return "bandwidth" if moving >= self.operations / machine.operations else "operations"

    def share(self, machine: Machine, seconds: float) -> float:
        """Return which share of the limit a stage that took ``seconds`` has reached; 1 is the limit."""
        return self.limit(machine) / seconds


def decode_step(
    config: DecoderConfig,
    *,
    batch: int = 1,
    context: int = 0,
    kv_bits: int = 8,
    group_size: int = 128,
    layout: Layout = "cuda",
    itemsize: int = 2,
) -> Stage:
    """Return the work of one token of each of ``batch`` answers behind ``context`` tokens each.

    Every weight is read once for all of them, keys and values of each once for it. Operations: two a weight
    and answer, and four a channel, query head, layer and token of the context for attention.
    """
    weights = linears_bytes(config, group_size, layout, itemsize=itemsize) + head_bytes(config, layout)
    held = batch * (context + 1) * token_bytes(config, kv_bits, itemsize)
    rows = batch * config.dim * itemsize  # of the embeddings
    products = 2 * (linear_weights(config) + config.vocab_size * config.dim)
    return Stage(weights + held + rows, batch * (products + _attention(config, context + 1)))


def prefill_chunks(
    config: DecoderConfig,
    tokens: int,
    *,
    context: int = 0,
    chunk: int = CHUNK,
    kv_bits: int = 8,
    group_size: int = 128,
    layout: Layout = "cuda",
    itemsize: int = 2,
) -> list[Stage]:
    """Return the work of a prompt's ``tokens`` behind ``context`` known ones, chunk by chunk.

    A chunk reads all 4-bit weights once, and where it is unpacked for a 16-bit product, writes and reads that
    too (CUDA); keys and values of what is held are read once a chunk. The head runs behind the last token.
    """
    weights = linears_bytes(config, group_size, layout, itemsize=itemsize)
    if layout == "cuda":
        weights += 2 * itemsize * linear_weights(config)
    each, stages = token_bytes(config, kv_bits, itemsize), []
    for start in range(context, context + tokens, chunk):
        count = min(chunk, context + tokens - start)
        products = 2 * linear_weights(config) * count
        attention = count * _attention(config, start + (count + 1) / 2)
        stages.append(Stage(weights + (start + count) * each, products + attention))
    if stages:
        last, head = stages[-1], 2 * config.vocab_size * config.dim
        stages[-1] = Stage(last.bytes + head_bytes(config, layout), last.operations + head)
    return stages


def encode(config: ModelConfig, width: int, height: int, itemsize: int = 2) -> Stage:
    """Return the work of encoding a picture of so many pixels, resized as the runtime does; adapter included.

    Every patch attends to every other, both ways: 4 operations a channel and pair of patches in each layer.
    """
    eye = config.vision
    columns, rows = image_grid(width, height, eye.image_size, eye.patch_size)
    patches, weights = rows * columns, encoder_weights(config)
    operations = 2 * patches * weights + 4 * eye.n_layers * patches**2 * eye.dim
    return Stage(weights * itemsize, operations)


@dataclass(frozen=True)
class Estimate:
    """Seconds that a stage takes at least (limit), and as predicted; what binds it."""

    limit: float
    seconds: float
    binding: Binding


@dataclass(frozen=True)
class Prediction:
    """What one answer takes on a machine: seconds, and tokens per second of all answers together.

    encode: one picture; None without pictures. first_token: all pictures encoded, the prompt through the
    decoder, one request by itself; reading and resizing pictures is not in it. decode: a step of all answers
    under way.
    """

    machine: Machine
    encode: Estimate | None
    prefill: Estimate
    first_token: Estimate
    decode: Estimate
    tokens_per_second: float
    limit_tokens_per_second: float


def predict(
    config: ModelConfig,
    machine: Machine,
    *,
    prompt: int,
    context: int,
    pictures: int = 0,
    picture: tuple[int, int] = (1024, 1024),
    batch: int = 1,
    kv_bits: int = 8,
    group_size: int = 128,
    layout: Layout = "cuda",
    itemsize: int = 2,
) -> Prediction:
    """Predict an answer: ``prompt`` tokens, ``pictures`` of ``picture`` pixels among them counted as tokens.

    context: tokens behind which the rate of decoding is told. The other arguments are ``decode_step``'s.
    """
    types = {"kv_bits": kv_bits, "group_size": group_size, "itemsize": itemsize}
    whole, short = (
        decode_step(config.decoder, batch=batch, context=held, layout=layout, **types)
        for held in (context, 0)
    )
    behind = Stage(whole.bytes - short.bytes, whole.operations - short.operations)
    share = machine.decode_share(batch)
    seconds = short.limit(machine) / share + behind.limit(machine) / (machine.attention or share)
    decode = Estimate(whole.limit(machine), seconds, whole.binding(machine))
    prefill = _estimate(
        prefill_chunks(config.decoder, prompt, layout=layout, **types), machine, machine.prefill
    )
    one = None
    first = prefill
    if pictures:
        one = _estimate([encode(config, *picture)], machine, machine.encode)
        first = replace(
            prefill,
            limit=prefill.limit + pictures * one.limit,
            seconds=prefill.seconds + pictures * one.seconds,
        )
    return Prediction(machine, one, prefill, first, decode, batch / decode.seconds, batch / decode.limit)


def _estimate(stages: Iterable[Stage], machine: Machine, share: float) -> Estimate:
    """Add stages up; the binding is that of most of the time."""
    limits = {"bandwidth": 0.0, "operations": 0.0}
    for stage in stages:
        limits[stage.binding(machine)] += stage.limit(machine)
    total = sum(limits.values())
    binding: Binding = "bandwidth" if limits["bandwidth"] >= limits["operations"] else "operations"
    return Estimate(total, total / share, binding)


def _attention(config: DecoderConfig, context: float) -> float:
    """Return the operations of one query's attention over ``context`` tokens in all layers."""
    return 4 * config.n_layers * config.n_heads * config.head_dim * context
