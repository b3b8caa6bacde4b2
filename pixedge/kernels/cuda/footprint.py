"""Bytes that the GPU path takes on the device, from the config alone: no device, torch or triton is needed.

The buffers are made by the shapes given here (``step.StepBuffers``, ``chunk.ChunkBuffers``), so what is told
is what is taken. The allocator's rounding, the cache of keys and values and CUDA's own memory come on top.
"""

from collections.abc import Iterable, Mapping
from math import prod

from pixedge.config import DecoderConfig
from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.layout import BATCHES, BLOCK_IN, LOGITS, MAX_ROWS, PADDED_OUT

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type of each buffer by its name; "half" is the activations' 16-bit type."""

ITEMSIZES = {"int8": 1, "half": 2, "int32": 4, "float32": 4, "int64": 8}


def products(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of a layer's products; projections of the same input are one."""
    width = config.n_heads * config.head_dim
    return {
        "qkv": (width + 2 * config.n_kv_heads * config.head_dim, config.dim),
        "o": (config.dim, width),
        "gate_up": (2 * config.ffn_dim, config.dim),
        "down": (config.dim, config.ffn_dim),
    }


def int4_bytes(
    outputs: int, inputs: int, group_size: int, *, zeros: bool = False, ordered: bool = False
) -> int:
    """Return the bytes of one packed 4-bit weight; zeros and ordered: as some imported folders have them."""
    rows, columns = _up(outputs, PADDED_OUT), _up(inputs, BLOCK_IN)
    group_size = inputs if group_size == -1 else group_size
    groups = columns // group_size if group_size in (32, 64) else -(-inputs // group_size)
    return rows * columns // 2 + 2 * rows * groups * (1 + zeros) + 4 * inputs * ordered


def weight_bytes(
    config: DecoderConfig,
    group_size: int,
    *,
    embeddings: bool,
    zeros: bool = False,
    ordered: bool = False,
) -> int:
    """Return the bytes of all of a decoder's weights on the device: layers, norms, 8-bit head, embeddings.

    embeddings: whether the table lies on the device and not in host memory.
    """
    table = config.vocab_size * config.dim
    linears = sum(
        int4_bytes(outputs, inputs, group_size, zeros=zeros, ordered=ordered)
        for outputs, inputs in products(config).values()
    )
    norms = 2 * (2 * config.n_layers + 1) * config.dim
    return config.n_layers * linears + norms + table + 2 * config.vocab_size + 2 * table * embeddings


def step_shapes(config: DecoderConfig, rows: int, max_pages: int, facts: tuning.Device) -> Shapes:
    """Return the buffers of decoding steps of up to ``rows`` sequences of up to ``max_pages`` pages each."""
    counts = range(1, rows + 1)
    chunks, half = -(-config.vocab_size // LOGITS), config.head_dim // 2
    # Every smaller batch is a part of these buffers, and may cut its products and contexts up further.
    parts = max(rows * tuning.parts(facts, rows, config.n_kv_heads) for rows in counts)
    return {
        "ids": ((rows,), "int32"),
        "positions": ((rows,), "int32"),
        "tables": ((rows, max_pages), "int32"),
        "lengths": ((rows,), "int32"),
        "sequences": ((rows,), "int32"),
        "residual": ((rows, config.dim), "float32"),
        "embedded": ((rows, config.dim), "half"),
        "normed": ((rows, config.dim), "half"),
        "rates": ((half,), "float32"),
        "angles": ((rows, half), "float32"),
        "cos": ((rows, half), "float32"),
        "sin": ((rows, half), "float32"),
        "partials": ((_partials(config, counts, facts),), "float32"),
        "queries": ((rows, config.n_heads, config.head_dim), "half"),
        "attended": ((rows, config.n_heads, config.head_dim), "half"),
        "activated": ((rows, config.ffn_dim), "half"),
        "parts": ((parts * config.n_heads * (config.head_dim + 2),), "float32"),
        "logits": ((rows, config.vocab_size), "float32"),
        "best": ((rows, chunks), "float32"),
        "best_ids": ((rows, chunks), "int32"),
        "sums": ((rows, chunks), "float32"),
        "totals": ((rows,), "float32"),
        "chosen": ((rows,), "int32"),
        "told": ((rows, 2), "int32"),
    }


def draw_shapes(config: DecoderConfig, rows: int) -> Shapes:
    """Return what drawing tokens takes beside a step's buffers."""
    return {
        "numbers": ((5, rows), "int32"),
        "drawn": ((rows,), "int32"),
        "values": ((rows, config.vocab_size), "float32"),
        "order": ((rows, config.vocab_size), "int64"),
    }


def chunk_shapes(
    config: DecoderConfig, tokens: int, sequences: int, max_pages: int, facts: tuning.Device
) -> Shapes:
    """Return the buffers of chunks of up to ``tokens`` tokens of up to ``sequences`` prompts."""
    sizes, half = products(config), config.head_dim // 2
    heads = (config.n_heads, config.head_dim)
    return {
        "places": ((place_count(tokens, sequences, max_pages),), "int32"),
        "embedded": ((tokens, config.dim), "half"),
        "residual": ((tokens, config.dim), "float32"),
        "normed": ((tokens, config.dim), "half"),
        "qkv": ((tokens, sizes["qkv"][0]), "half"),
        "queries": ((tokens, *heads), "half"),
        "attended": ((tokens, *heads), "half"),
        "added": ((tokens, config.dim), "half"),
        "gate_up": ((tokens, sizes["gate_up"][0]), "half"),
        "activated": ((tokens, config.ffn_dim), "half"),
        "rates": ((half,), "float32"),
        "angles": ((tokens, half), "float32"),
        "cos": ((tokens, half), "float32"),
        "sin": ((tokens, half), "float32"),
        "scratch": ((max(outputs * inputs for outputs, inputs in sizes.values()),), "half"),
        "partials": ((_partials(config, range(1, min(tokens, MAX_ROWS) + 1), facts),), "float32"),
    }


def place_count(tokens: int, sequences: int, max_pages: int) -> int:
    """Return how many integers tell where a chunk's tokens belong; each list begins at a multiple of 16."""
    return 3 * _up(tokens, 16) + _up(sequences, 16) + _up(sequences + 1, 16) + sequences * max_pages


def total(shapes: Shapes) -> int:
    """Return the bytes of buffers of such shapes."""
    return sum(prod(shape) * ITEMSIZES[kind] for shape, kind in shapes.values())


def buffer_bytes(
    config: DecoderConfig,
    *,
    chunk: int,
    requests: int,
    max_pages: int,
    facts: tuning.Device,
) -> int:
    """Return the bytes of all static buffers on the device: decoding steps, draws and chunks of prompts.

    chunk: the most tokens of prompts in a step. requests: the most sequences at a time, of which up to 16
    decode in one graph. max_pages: the most pages of one sequence. facts: ``tuning.of_capability``, or
    ``tuning.device`` where there is a device. The graphs themselves take none of their own.
    """
    rows = _largest(requests)
    shapes = (
        step_shapes(config, rows, max_pages, facts),
        draw_shapes(config, rows),
        chunk_shapes(config, chunk, requests, max_pages, facts),
    )
    return sum(map(total, shapes))


def _largest(requests: int) -> int:
    return next((size for size in BATCHES if size >= requests), BATCHES[-1])


def _partials(config: DecoderConfig, counts: Iterable[int], facts: tuning.Device) -> int:
    """Return how many partial sums a product of any of these numbers of rows leaves at most."""
    sizes = products(config).values()
    return max(
        tuning.splits(facts, outputs, inputs, rows) * rows * outputs
        for rows in counts
        for outputs, inputs in sizes
    )


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
