"""The vision encoder in ONNX: small graphs over one copy of the weights, and a check against torch.

All graphs take their weights from the safetensors shard by offset: ``vision_encoder.onnx`` computes in
float16 for CUDA, ``vision_encoder_cpu.onnx`` in float32 on any CPU, and ``vision_encoder_fused.onnx`` by
pixedge's own operators on CPUs that have the instructions for them.
"""

import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pixedge.config import ModelConfig, VisionConfig
from pixedge.errors import ExportError
from pixedge.image import image_grid
from pixedge.kernels.vision.fast import WIDEST_HEAD
from pixedge.onnx_runtime import onnxruntime
from pixedge.vision import CPU_GRAPH, CUDA_GRAPH, FUSED_GRAPH, fused_options, session_options
from pixedge_export.encoder import VisionEncoder, encode
from pixedge_export.vision_graph import Form, StoredWeight, build_graph

# Largest deviation from torch over the largest magnitude. Both sides have the same float16 weights, so in
# float32 only the order of sums differs (24 layers of random weights: 3e-6). In float16 every product is
# rounded (5e-4 there). The fused graph rounds what products take to bfloat16, of 8 bits instead of 11 (4e-3
# there; 2e-2 with outliers in weights, norms and residual stream).
FLOAT32_BOUND = 1e-4
FLOAT16_BOUND = 1e-2
FUSED_BOUND = 5e-2

_FORMS: dict[str, Form] = {CUDA_GRAPH: "float16", CPU_GRAPH: "float32", FUSED_GRAPH: "fused"}

# Width and height of pictures as they come, brought to whole patches and to image_size as the runtime does.
_ODD_PICTURES = ((517, 333), (37, 1000), (250, 700), (129, 127), (3000, 40))
_FEWEST_SIZES = 8
_FLOAT16_SIZES = 3


@dataclass(frozen=True)
class ParityRow:
    """One picture, its height and width in pixels, through torch and through a graph.

    error: largest deviation from torch in float32, over the largest magnitude of the embeddings.
    """

    graph: str
    height: int
    width: int
    error: float
    bound: float


@dataclass(frozen=True)
class _Sample:
    pixels: NDArray[np.float32]  # [3, H, W]
    expected: NDArray[np.float32]  # [patches, decoder dim]


def export_vision(config: ModelConfig, folder: Path, weights_file: str) -> list[Path]:
    """Write the graphs beside the safetensors file that holds the encoder's canonical float16 tensors.

    The fused graph is left out where its kernels do not take the heads' width. The graphs' bytes depend on
    the config and on that file's header only. Raises ExportError when a tensor is missing, misshapen or of
    another dtype.
    """
    weights = _locate(config, folder / weights_file)
    files = []
    for name in graph_names(config.vision):
        path = folder / name
        path.write_bytes(build_graph(config, weights, _FORMS[name]).SerializeToString(deterministic=True))
        files.append(path)
    return files


def graph_names(vision: VisionConfig) -> list[str]:
    """List the graphs' files that an export has."""
    return [name for name in _FORMS if name != FUSED_GRAPH or vision.head_dim <= WIDEST_HEAD]


def check_parity(
    make_encoder: Callable[[], VisionEncoder], folder: Path, config: ModelConfig
) -> list[ParityRow]:
    """Compare the graphs in `folder` with an encoder, both with weights rounded to float16.

    The float32 graph runs at every size of parity_grids, the fused graph too where this machine has its
    kernels. The float16 graph runs at the smallest three: the CPU provider computes its nodes in float32 and
    rounds between them, so that proves its structure and its casts, not its range. Memory: the encoder's
    float32 size about three times; the encoder is made here, so that it is gone before the graphs are loaded.
    Raises ExportError naming the size, the error and the bound, or what is wrong in the graph.
    """
    samples = _references(make_encoder(), config)
    few = sorted(samples, key=lambda sample: sample.pixels.size)[:_FLOAT16_SIZES]
    layers = config.vision.n_layers
    rows = _check_graph(folder / CPU_GRAPH, FLOAT32_BOUND, samples, layers, session_options())
    fused = fused_options()
    if fused is not None and FUSED_GRAPH in graph_names(config.vision):
        rows += _check_graph(folder / FUSED_GRAPH, FUSED_BOUND, samples, layers, fused)
    return rows + _check_graph(folder / CUDA_GRAPH, FLOAT16_BOUND, few, layers, session_options())


def parity_grids(vision: VisionConfig) -> list[tuple[int, int]]:
    """List at least 8 picture sizes as (rows, columns) of patches, or all there are where they are fewer.

    The extremes come first: one patch, one row, one column, the largest square. Odd pictures follow.
    """
    most = vision.image_size // vision.patch_size
    grids = [(1, 1), (1, most), (most, 1), (most, most)]
    for width, height in _ODD_PICTURES:
        columns, rows = image_grid(width, height, vision.image_size, vision.patch_size)
        grids.append((rows, columns))
    others = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most + 1)]
    random.Random(0).shuffle(others)
    unique = list(dict.fromkeys(grids))
    return unique + [grid for grid in others if grid not in unique][: max(_FEWEST_SIZES - len(unique), 0)]


def _locate(config: ModelConfig, file: Path) -> dict[str, StoredWeight]:
    """Find every tensor of the encoder in a safetensors file: 8 bytes of header length, JSON header, data."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in VisionEncoder(config).state_dict().items()}
    places = {}
    for name, shape in shapes.items():
        if name not in header:
            raise ExportError(f"{file} has no {name}, which the vision graph reads; write it there first")
        entry = header[name]
        if entry["dtype"] != "F16" or tuple(entry["shape"]) != shape:
            raise ExportError(
                f"{file}: {name} is {entry['dtype']} {entry['shape']}, but the vision graph reads "
                f"F16 {list(shape)}; write it so"
            )
        start, end = entry["data_offsets"]
        places[name] = StoredWeight(file.name, shape, 8 + length + start, end - start)
    return places


def _references(encoder: VisionEncoder, config: ModelConfig) -> list[_Sample]:
    """Encode random pictures of all sizes with torch in float32."""
    rounded = {}
    for name, weight in encoder.state_dict().items():
        value = weight.cpu().half().float()
        rounded[name] = (
            weight if weight.dtype == torch.float32 and torch.equal(weight.cpu(), value) else value
        )
    with torch.device("meta"):
        reference = VisionEncoder(config)
    reference.load_state_dict(rounded, assign=True)
    reference.cpu().requires_grad_(False)
    generator = np.random.default_rng(0)
    samples = []
    for rows, columns in parity_grids(config.vision):
        patch = config.vision.patch_size
        shape = (config.vision.n_channels, rows * patch, columns * patch)
        pixels = generator.standard_normal(shape, dtype=np.float32)
        samples.append(_Sample(pixels, encode(reference, torch.from_numpy(pixels)).numpy()))
    return samples


def _check_graph(
    file: Path,
    bound: float,
    samples: Sequence[_Sample],
    layers: int,
    options: onnxruntime.SessionOptions,
) -> list[ParityRow]:
    model = onnx.load(file, load_external_data=False)
    kind = "EncoderLayer" if file.name == FUSED_GRAPH else "MultiHeadAttention"
    found = sum(node.op_type == kind for node in model.graph.node)
    _check_attention(f"{file.name} holds", kind, found, layers)
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{file.name} is not a valid ONNX graph ({error}); do not use this export"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        smallest = min(samples, key=lambda sample: sample.pixels.size)
        session.run(None, {"pixels": smallest.pixels})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    # What ran, after the optimiser: a decomposed node would show as several of other kinds.
    ran = {event["name"] for event in events if event.get("args", {}).get("op_name") == kind}
    _check_attention(f"ONNX Runtime, having optimised {file.name}, runs", kind, len(ran), layers)
    return [_compare(session, file.name, sample, bound) for sample in samples]


def _check_attention(where: str, kind: str, found: int, layers: int) -> None:
    if found != layers:
        raise ExportError(
            f"{where} {found} {kind} nodes, but the encoder has {layers} layers; without fused "
            "attention large pictures need gigabytes, so do not use this export"
        )


def _compare(session: onnxruntime.InferenceSession, name: str, sample: _Sample, bound: float) -> ParityRow:
    (found,) = session.run(None, {"pixels": sample.pixels})
    height, width = sample.pixels.shape[1:]
    where = f"{name} on a picture of {width}x{height} pixels"
    if found.shape != sample.expected.shape:
        raise ExportError(
            f"{where} gives embeddings of shape {list(found.shape)}, but torch gives "
            f"{list(sample.expected.shape)}; do not use this export"
        )
    if not (np.isfinite(found).all() and np.isfinite(sample.expected).all()):
        raise ExportError(
            f"{where} gives embeddings that are not finite; check the checkpoint's vision weights"
        )
    error = float(np.abs(found - sample.expected).max() / np.abs(sample.expected).max())
    if not error <= bound:
        raise ExportError(
            f"{where} differs from torch by {error:.1e} of the largest embedding, where {bound:.0e} is "
            "allowed; do not use this export"
        )
    return ParityRow(name, height, width, error, bound)
