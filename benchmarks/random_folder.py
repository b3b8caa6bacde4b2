"""The decoder's part of an exported folder with random weights, written at the speed of the disk."""

from pathlib import Path

import torch
from torch import Tensor

from pixedge.artifact import Artifact
from pixedge.config import ModelConfig
from pixedge.tensor_shapes import exported_shapes
from pixedge_export.safetensors_writer import save_tensors

GROUP_SIZE = 128


def write_decoder(folder: Path, config: ModelConfig, device: torch.device) -> Artifact:
    """Write a shard a layer and one for the rest; numbers are drawn on ``device``. Return it opened."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = {
        name: shape for name, shape in exported_shapes(config, GROUP_SIZE).items() if "language" in name
    }
    shards: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        shards.setdefault(parts[3] if parts[2] == "layers" else parts[2], []).append(name)
    weight_map = {}
    for shard, names in shards.items():
        file = f"{shard}.safetensors"
        save_tensors(folder / file, {name: _draw(name, shapes[name], generator, device) for name in names})
        weight_map |= dict.fromkeys(names, file)
    return Artifact(folder, config, {}, {}, GROUP_SIZE, None, weight_map)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    if name.endswith("qweight"):
        words = torch.empty(shape, dtype=torch.int32, device=device)
        return words.random_(-(2**31), 2**31 - 1, generator=generator)
    if name.endswith("qzeros"):
        return torch.full(shape, 0x77777777, dtype=torch.int32)
    if name.endswith("g_idx"):
        return torch.arange(shape[0], dtype=torch.int32) // GROUP_SIZE
    if name.endswith("scales"):
        # 4.6: standard deviation of the values, so that a product keeps the size of what it multiplies
        return torch.full(shape, 1 / (4.6 * (shape[0] * GROUP_SIZE) ** 0.5)).bfloat16().half()
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    size = 1.0 if "embed_tokens" in name else shape[-1] ** -0.5
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, size, generator=generator)
