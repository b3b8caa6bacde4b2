"""Bytes that a model needs beside its weights and its cache, from the geometry alone."""

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.image import image_grid
from pixedge.kernels.cuda import footprint
from pixedge.kernels.cuda.layout import BATCHES, PAGE
from pixedge.kernels.cuda.tuning import Device
from pixedge.stored_weights import Layout, VisionForm, linear_shapes

MIB = 1 << 20

PROCESS = 323 * MIB
"""A process with Python, torch and ONNX Runtime in it, on a CPU (measured with the demo)."""

TOKEN_TEXT = 720
"""Bytes that the tokenizer takes for each entry of the vocabulary (measured with 65,536 and 131,072)."""

CUDA_CONTEXT = 768 * MIB
"""CUDA's context, kernels and the libraries' workspaces, of torch and of ONNX Runtime (not measured)."""


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


def process_bytes(config: DecoderConfig) -> int:
    """Return the bytes of RAM of a process that has loaded everything but the model."""
    return PROCESS + TOKEN_TEXT * config.vocab_size


def picture_patches(config: ModelConfig, width: int, height: int) -> int:
    """Return into how many patches a picture is cut, once it is resized."""
    columns, rows = image_grid(width, height, config.vision.image_size, config.vision.patch_size)
    return columns * rows


def picture_tokens(config: ModelConfig, width: int, height: int) -> int:
    """Return how many tokens a picture takes in the prompt: its patches, and an id at the end of each row."""
    columns, rows = image_grid(width, height, config.vision.image_size, config.vision.patch_size)
    return (columns + 1) * rows


def gpu_scratch(
    config: DecoderConfig, *, chunk: int, batch: int, max_tokens: int, facts: Device
) -> tuple[int, int]:
    """Return the bytes of the GPU path's fixed buffers: of chunks of prompts, and of decoding steps.

    chunk: the most tokens of prompts in a step. batch: answers under way at a time, of which up to 16 decode
    in one graph. max_tokens: the most that one of them may hold.
    """
    rows = next((size for size in BATCHES if size >= batch), BATCHES[-1])
    pages = -(-max_tokens // PAGE)
    prompts = footprint.chunk_shapes(config, chunk, batch, pages, facts)
    steps = footprint.step_shapes(config, rows, pages, facts)
    return footprint.total(prompts), footprint.total(steps) + footprint.total(
        footprint.draw_shapes(config, rows)
    )


def cpu_scratch(
    config: DecoderConfig, layout: Layout, *, chunk: int, batch: int, itemsize: int = 2
) -> tuple[int, int]:
    """Return the bytes that a chunk of prompts and a decoding step take at most, where torch allocates them.

    The arguments are ``gpu_scratch``'s. Layouts other than the C library's are unpacked for every product:
    the largest weight, and its differences to the zero points.
    """
    shapes = linear_shapes(config)
    queries, keys = shapes["q"][0], shapes["k"][0]
    widths = 3 * config.dim + 3 * queries + 2 * keys + 3 * config.ffn_dim
    rows = chunk * (widths * itemsize + 4 * config.dim)
    unpacked = 0 if layout == "cpu" else 4 * itemsize * config.dim * config.ffn_dim
    step = batch * (8 * config.vocab_size + 4 * (3 * config.dim + 2 * queries + config.ffn_dim))
    return rows + unpacked, step
