"""An exported folder of any shape with random weights, written at the speed of the disk: nothing is exported.

For what weights a model has does not matter to memory: how much of it there is, and when.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixedge.artifact import FORMAT_VERSION, INDEX, MANIFEST
from pixedge.config import ModelConfig
from pixedge.tensor_shapes import exported_shapes
from pixedge_export.safetensors_writer import TensorSpec, stream_tensors
from pixedge_export.synthetic import write_tokenizer
from pixedge_export.vision import export_vision

GROUP = 128


def random_artifact(
    folder: Path,
    config: ModelConfig,
    draw: Callable[[str, tuple[int, ...], torch.Generator], Tensor] | None = None,
    write: Callable[[Path, Mapping[str, TensorSpec], Iterable[Tensor]], None] = stream_tensors,
) -> Path:
    """Write a folder that ``pixedge.load`` takes; its vocabulary is Tekken's, cut to the config's.

    draw: gives a tensor by name and shape. write: a file of tensors.
    """
    draw = draw or draw_tensor
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    shapes = exported_shapes(config, GROUP)
    weight_map = {}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        key = ".".join(name.split(".")[:4]) if ".layers." in name and "language" in name else "rest"
        parts.setdefault(key if "vision" not in name and "multi" not in name else "vision", []).append(name)
    for number, names in enumerate(parts.values(), 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        names.sort(key=lambda name: -_dtype(name).itemsize)
        specs = {name: TensorSpec(_dtype(name), shapes[name]) for name in names}
        write(folder / file, specs, (draw(name, shapes[name], generator) for name in names))
        weight_map |= dict.fromkeys(names, file)
    export_vision(config, folder, weight_map["vision_tower.ln_pre.weight"])
    (folder / "params.json").write_text(json.dumps(config.to_params()))
    write_tokenizer(folder / "tekken.json", config)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": "0" * 64} for file in sorted(folder.iterdir())
    }
    recipe = {"method": "rtn", "group_size": GROUP}
    manifest = {"format_version": FORMAT_VERSION, "recipe": recipe, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def _dtype(name: str) -> torch.dtype:
    if name.endswith(("qweight", "qzeros", "g_idx")):
        return torch.int32
    packed = name.endswith("scales") or not name.startswith("language_model.")
    return torch.float16 if packed else torch.bfloat16


def draw_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("qweight"):
        return torch.empty(shape, dtype=torch.int32).random_(-(2**31), 2**31 - 1, generator=generator)
    if name.endswith("qzeros"):
        return torch.full(shape, 0x77777777, dtype=torch.int32)
    if name.endswith("g_idx"):
        return torch.arange(shape[0], dtype=torch.int32) // GROUP
    if name.endswith("scales"):
        # 4.6: standard deviation of the values, so that a product keeps the size of what it multiplies
        return torch.full(shape, 1 / (4.6 * (shape[0] * GROUP) ** 0.5)).bfloat16().half()
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=_dtype(name))
    drawn = torch.empty(shape, dtype=_dtype(name)).normal_(0, 1, generator=generator)
    return drawn if "embed_tokens" in name else drawn.mul_(0.5 / math.sqrt(math.prod(shape[1:])))
