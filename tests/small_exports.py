"""A small random checkpoint and its export, made once for all tests that only read them."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pixedge.artifact import MANIFEST, hash_file
from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.self_digest import KEY, UNSIGNED, sign
from pixedge_export.checkpoint import Layout, save_checkpoint
from pixedge_export.pipeline import Recipe, export
from pixedge_export.safetensors_writer import save_tensors
from tests.random_models import Tensors, random_tensors

TEKKEN = Path(__file__).parents[1] / "models" / "demo" / "tekken.json"
VOCAB = json.loads(TEKKEN.read_text(encoding="utf-8"))["config"]["default_vocab_size"]

CONFIG = ModelConfig(
    DecoderConfig(
        dim=96,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        ffn_dim=160,
        vocab_size=VOCAB,
        norm_eps=1e-5,
        rope_theta=1e4,
        context=600,
    ),
    VisionConfig(
        dim=32,
        n_layers=2,
        n_heads=2,
        ffn_dim=48,
        n_channels=3,
        patch_size=16,
        image_size=128,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    ),
)
RECIPE = Recipe(group_size=32)
ROUNDED = Recipe("rtn", group_size=32)
SAMPLES = 8


def small_tensors() -> Tensors:
    return {name: tensor.to(torch.bfloat16) for name, tensor in random_tensors(CONFIG, 3).items()}


def write_checkpoint(folder: Path, layout: Layout = "mistral", tensors: Tensors | None = None) -> Path:
    """Write the checkpoint, with other tensors where they are given."""
    save_checkpoint(folder, CONFIG, small_tensors() if tensors is None else tensors, layout)
    shutil.copyfile(TEKKEN, folder / "tekken.json")
    return folder


@functools.cache
def small_export(base: Path) -> Path:
    """Export the checkpoint with GPTQ into a folder below ``base``; tests that change it take a copy."""
    source = write_checkpoint(base / "small")
    return export(source, base / "small-pixedge-4bit", RECIPE, samples=SAMPLES, threads=1, device="cpu")


def alter_shard(folder: Path, holds: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Let ``change`` alter the tensors of the shard that holds a tensor; the index stays as it is."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    file = folder / index["weight_map"][holds]
    tensors = load_file(file)
    change(tensors)
    save_tensors(file, tensors)


def alter_json(file: Path, change: Callable[[dict], None]) -> None:
    """Let ``change`` alter a JSON file, and make its digest of itself right again."""
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    if isinstance(data, dict) and KEY in data:
        data[KEY] = UNSIGNED
        file.write_bytes(sign(json.dumps(data).encode()))
    else:
        file.write_text(json.dumps(data), encoding="utf-8")


def hash_again(folder: Path) -> None:
    """Make the manifest agree with the files, whatever has become of them."""

    def change(manifest: dict) -> None:
        manifest["files"] = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
            for name in manifest["files"]
            if (folder / name).exists()
        }

    alter_json(folder / MANIFEST, change)
