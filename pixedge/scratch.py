"""Bytes that a model needs beside its weights and its cache, from the geometry alone."""

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.image import image_grid
from pixedge.stored_weights import Layout, VisionForm, linear_shapes

MIB = 1 << 20

PROCESS = 310 * MIB
"""A process with Python, torch, ONNX Runtime and the tokenizer in it, on a CPU (measured: 318 MiB with the
demo, 11 of them the demo's)."""

CUDA_CONTEXT = 768 * MIB
"""CUDA's context, kernels and the libraries' workspaces, of torch and of ONNX Runtime (not measured)."""

PARTIALS = 16 * MIB
"""Bound of the partial sums of one product of up to 16 rows on a GPU."""

BATCHES = (1, 2, 4, 8, 16)
"""Batch sizes whose decoding steps are captured as CUDA graphs."""


def encoder_activations(config: ModelConfig, patches: int, form: VisionForm) -> int:
    """Return the bytes that encoding a picture of so many patches takes at its widest point.

    Residual stream and its norm are float32. Beside them lie queries, keys, values and their copies, or the
    feed-forward's three, or the adapter's three; float16 on CUDA, float32 elsewhere. On CUDA twice the widest
    point is allowed for the arena's fragments between pictures of different sizes, and 256 MiB for the
    libraries' scratch.
    """
    if not patches:
        return 0
    eye, out = config.vision, config.decoder.dim
    item = 2 if form == "float16" else 4
    widest = 8 * eye.dim + item * max(8 * eye.dim, eye.dim + 3 * eye.ffn_dim, 3 * out)
    if form == "float16":
        return 2 * patches * widest + 256 * MIB
    return patches * widest


def picture_patches(config: ModelConfig, width: int, height: int) -> int:
    """Return into how many patches a picture is cut, once it is resized."""
    columns, rows = image_grid(width, height, config.vision.image_size, config.vision.patch_size)
    return columns * rows


def picture_tokens(config: ModelConfig, width: int, height: int) -> int:
    """Return how many tokens a picture takes in the prompt: its patches, and an id at the end of each row."""
    columns, rows = image_grid(width, height, config.vision.image_size, config.vision.patch_size)
    return (columns + 1) * rows


def prefill_scratch(config: DecoderConfig, layout: Layout, tokens: int, itemsize: int = 2) -> int:
    """Return the bytes that a chunk of ``tokens`` tokens takes on its way through the decoder."""
    shapes = linear_shapes(config)
    queries, keys = shapes["q"][0], shapes["k"][0]
    widths = 3 * config.dim + 3 * queries + 2 * keys + 3 * config.ffn_dim
    rows = tokens * (widths * itemsize + 4 * config.dim)
    if layout == "cuda":  # the largest stacked weight, unpacked
        largest = max(queries + 2 * keys, config.dim, 2 * config.ffn_dim) * config.dim
        return rows + itemsize * max(largest, config.dim * config.ffn_dim) + PARTIALS
    if layout == "cpu":
        return rows
    # unpacked, and its grouped differences to the zero points
    return rows + 4 * itemsize * config.dim * config.ffn_dim


def decode_scratch(
    config: DecoderConfig, layout: Layout, batch: int, max_tokens: int, itemsize: int = 2
) -> int:
    """Return the bytes of a decoding step of up to ``batch`` answers of up to ``max_tokens`` tokens."""
    logits = 4 * config.vocab_size
    widths = 3 * config.dim + 2 * config.n_heads * config.head_dim + config.ffn_dim
    if layout != "cuda":
        return batch * (2 * logits + 4 * widths)
    largest = next((size for size in BATCHES if size >= batch), batch)
    graphs = sum(size for size in BATCHES if size <= largest)
    parts = 64 * config.n_heads * 4 * (config.head_dim + 2)  # of a context, each with its own sums
    row = logits + 4 * config.dim + itemsize * widths + max_tokens // 4
    return largest * row + graphs * parts + PARTIALS
