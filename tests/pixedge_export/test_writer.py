"""Shards, index, configuration and manifest of an artifact."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixedge.artifact import FORMAT_VERSION, INDEX, MANIFEST, REPORTS, hash_file
from pixedge.config import ModelConfig
from pixedge.packing import pack_gptq
from pixedge.tensor_shapes import exported_shapes, is_quantized
from pixedge_export.checkpoint import expected_shapes
from pixedge_export.gptq import quantize_rtn
from pixedge_export.layers import Recipe
from pixedge_export.synthetic import PIXTRAL_12B
from pixedge_export.writer import (
    ShardWriter,
    estimate_bytes,
    quantization_config,
    write_configs,
    write_json,
    write_manifest,
)
from tests.random_models import random_tensors
from tests.small_exports import CONFIG, RECIPE, small_export


def test_shards_and_their_index(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 2)
    tensors = {"b": torch.ones(3, 2), "a": torch.arange(4, dtype=torch.int32)}
    assert writer.write(2, tensors) == "model-00002-of-00002.safetensors"
    assert writer.write(1, {"c": torch.zeros(5, dtype=torch.float16)}) == "model-00001-of-00002.safetensors"
    writer.write_index()
    assert torch.equal(load_file(tmp_path / "model-00002-of-00002.safetensors")["b"], tensors["b"])
    index = json.loads((tmp_path / INDEX).read_text())
    assert index == {
        "metadata": {"total_size": 24 + 16 + 10},
        "weight_map": {
            "a": "model-00002-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "c": "model-00001-of-00002.safetensors",
        },
    }
    assert list(index["weight_map"]) == ["a", "b", "c"]


def test_exported_shapes_are_those_of_packed_tensors() -> None:
    """The shapes that loading expects against those that packing makes, for every tensor of a model."""
    tensors = random_tensors(CONFIG, 0)
    made = {}
    for name, tensor in tensors.items():
        if is_quantized(name):
            packed = pack_gptq(quantize_rtn(tensor, 32))
            made |= {f"{name.removesuffix('weight')}{key}": tuple(t.shape) for key, t in packed.items()}
        else:
            made[name] = tuple(tensor.shape)
    assert exported_shapes(CONFIG, 32) == made
    assert sum(is_quantized(name) for name in tensors) == 7 * CONFIG.decoder.n_layers


def test_the_estimate_is_what_the_shards_take(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = small_export(tmp_path_factory.getbasetemp())
    taken = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert 0.97 * taken < estimate_bytes(CONFIG, RECIPE) < taken
    assert 9.1e9 < estimate_bytes(PIXTRAL_12B, Recipe()) < 9.4e9


def test_config_json_says_which_linears_are_packed(tmp_path: Path) -> None:
    write_configs(tmp_path, CONFIG, Recipe(group_size=64, damping=0.05))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == quantization_config(Recipe(group_size=64, damping=0.05))
    quantization = config["quantization_config"]
    assert (quantization["quant_method"], quantization["bits"], quantization["group_size"]) == ("gptq", 4, 64)
    assert quantization["sym"] is True and quantization["desc_act"] is False
    named = {name for stage in quantization["modules_in_block_to_quantize"] for name in stage}
    linears = {
        name.removesuffix(".weight").partition("layers.0.")[2]
        for name in expected_shapes(CONFIG)
        if is_quantized(name) and "layers.0." in name
    }
    assert named == linears and len(linears) == 7
    assert config["torch_dtype"] == "bfloat16"


def test_both_configs_are_read_back_as_the_same_model(tmp_path: Path) -> None:
    write_configs(tmp_path, CONFIG, RECIPE)
    assert ModelConfig.load(tmp_path) == CONFIG
    (tmp_path / "params.json").unlink()
    assert ModelConfig.load(tmp_path) == CONFIG


def test_the_manifest_names_every_file_but_itself_and_the_reports(tmp_path: Path) -> None:
    """Nor what a killed run has left of a file that it was writing."""
    for name in ("b.bin", "a.json", *REPORTS, f"{MANIFEST}.new", "sub/c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    steps: list[tuple[int, int]] = []
    write_manifest(tmp_path, {"recipe": {"group_size": 32}}, lambda done, total: steps.append((done, total)))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["recipe"] == {"group_size": 32}
    assert list(manifest["files"]) == ["a.json", "b.bin", "sub/c.bin"]
    assert manifest["files"]["b.bin"] == {"bytes": 5, "sha256": hash_file(tmp_path / "b.bin")}
    assert steps[-1] == (6 + 5 + 9, 6 + 5 + 9)


def test_json_is_written_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"text": "größer"})
    assert file.read_text(encoding="utf-8") == '{\n  "text": "größer"\n}\n'

    def fail(self: Path, *args: object, **options: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError):
        write_json(file, {})
    assert json.loads(file.read_bytes()) == {"text": "größer"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_every_file_of_an_export_is_as_open_as_the_umask_allows(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = small_export(tmp_path_factory.getbasetemp())
    umask = os.umask(0)
    os.umask(umask)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    # the tokenizer is a copy of a file that the tests did not make
    modes.pop("tekken.json")
    assert set(modes.values()) == {0o666 & ~umask}, modes
