"""Writing an artifact: weight shards, their index, configuration files, and the manifest last."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pixedge.artifact import FORMAT_VERSION, INDEX, MANIFEST, REPORTS, hash_file
from pixedge.config import HF_FILE, PARAMS_FILE, ModelConfig
from pixedge.durable_file import publish
from pixedge.self_digest import KEY, UNSIGNED, sign
from pixedge.tensor_shapes import exported_shapes
from pixedge_export.layers import STAGES, Recipe
from pixedge_export.safetensors_header import read_header
from pixedge_export.safetensors_writer import save_tensors


class ShardWriter:
    """Writes shards named model-0000i-of-0000n.safetensors."""

    def __init__(self, folder: Path, shards: int) -> None:
        """Prepare to write ``shards`` files into ``folder``."""
        self.folder, self.shards = folder, shards

    def name(self, number: int) -> str:
        """Return the file name of shard ``number``, from 1."""
        return f"model-{number:05d}-of-{self.shards:05d}.safetensors"

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> str:
        """Write shard ``number`` and return its file name."""
        save_tensors(self.folder / self.name(number), tensors)
        return self.name(number)

    def write_index(self) -> None:
        """Write the index that every reader of shards starts from, from the headers of what is there."""
        weight_map, total = {}, 0
        for number in range(1, self.shards + 1):
            for tensor in read_header(self.folder / self.name(number)):
                weight_map[tensor.name] = self.name(number)
                total += tensor.nbytes
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(self.folder / INDEX, index)


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
    """Hash every file of the folder but the reports and write pixedge.json, which makes it an artifact."""
    for beside in folder.glob("*.new"):  # of an export that was killed
        beside.unlink()
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, *REPORTS))
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
    manifest = {"format_version": FORMAT_VERSION, **facts, "files": entries, KEY: UNSIGNED}
    write_json(folder / MANIFEST, manifest)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON for people and programs, in one piece, with its own digest where there is a place for it."""
    beside = path.with_name(path.name + ".new")
    text = (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
    beside.write_bytes(sign(text) if data.get(KEY) == UNSIGNED else text)
    publish(beside, path)
