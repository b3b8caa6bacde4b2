"""Writing an artifact: weight shards, their index, configuration files, and the manifest last."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pixedge.artifact import FORMAT_VERSION, INDEX, MANIFEST, REPORT, hash_file
from pixedge.config import HF_FILE, PARAMS_FILE, ModelConfig
from pixedge.tensor_shapes import exported_shapes
from pixedge_export.layers import STAGES, Recipe
from pixedge_export.safetensors_writer import save_tensors

SHARD_BYTES = 2 << 30


class ShardWriter:
    """Writes shards named model-0000i-of-0000n.safetensors and remembers where each tensor went."""

    def __init__(self, folder: Path, shards: int) -> None:
        """Prepare to write ``shards`` files into ``folder``."""
        self.folder, self.shards = folder, shards
        self.weight_map: dict[str, str] = {}
        self.total_bytes = 0

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> str:
        """Write shard ``number`` (from 1) and return its file name."""
        name = f"model-{number:05d}-of-{self.shards:05d}.safetensors"
        save_tensors(self.folder / name, tensors)
        self.weight_map |= dict.fromkeys(tensors, name)
        self.total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        return name

    def write_index(self) -> None:
        """Write the index that every reader of shards starts from."""
        index = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": dict(sorted(self.weight_map.items())),
        }
        write_json(self.folder / INDEX, index)


def layers_per_shard(config: ModelConfig) -> int:
    """Return how many 4-bit layers fill a shard of about SHARD_BYTES."""
    d = config.decoder
    weights = d.dim * d.head_dim * (2 * d.n_heads + 2 * d.n_kv_heads) + 3 * d.dim * d.ffn_dim
    return max(1, SHARD_BYTES // (weights * 9 // 16))


def estimate_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Return about how many bytes an artifact takes, without the tokenizer's files."""
    n_bytes = 0
    for name, shape in exported_shapes(config, recipe.group_size).items():
        n_bytes += math.prod(shape) * (4 if name.endswith(("qweight", "qzeros", "g_idx")) else 2)
    return n_bytes


def quantization_config(recipe: Recipe) -> dict[str, Any]:
    """Return what transformers, GPTQModel and vLLM read to find the 4-bit linears.

    Only the decoder's linears are packed. The `dynamic` rules say so for readers that would otherwise look
    for 4-bit weights in every linear, the vision tower's included.
    """
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": recipe.group_size,
        "sym": True,
        "desc_act": False,
        "true_sequential": True,
        "lm_head": False,
        "damp_percent": recipe.damping,
        "modules_in_block_to_quantize": [list(stage) for stage in STAGES],
        "dynamic": {"-:.*vision_tower.*": {}, "-:.*multi_modal_projector.*": {}, "-:.*lm_head.*": {}},
    }


def write_configs(folder: Path, config: ModelConfig, recipe: Recipe) -> None:
    """Write params.json and config.json."""
    write_json(folder / PARAMS_FILE, config.to_params())
    hf = config.to_hf() | {"torch_dtype": "bfloat16", "quantization_config": quantization_config(recipe)}
    write_json(folder / HF_FILE, hf)


def write_manifest(
    folder: Path, facts: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> None:
    """Hash every file of the folder but the report and write pixedge.json, which makes it an artifact."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, REPORT))
    total, done = sum(p.stat().st_size for p in files), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    entries = {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": hash_file(p, step)}
        for p in files
    }
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, **facts, "files": entries})


def write_json(path: Path, data: Any) -> None:
    """Write JSON for people and programs, in one piece."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)
