"""The report of a real export: where its bytes went, and that JSON, page and manifest agree."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixedge.artifact import MANIFEST, REPORT, REPORT_PAGE, REPORTS, open_artifact
from pixedge.packing import NIBBLES
from pixedge.self_digest import KEY, is_as_signed
from pixedge.tensor_shapes import expected_shapes, is_quantized
from pixedge_export.divergence import Divergence
from pixedge_export.layers import LinearError
from pixedge_export.report import PARTS, Report, count_bytes, write_report
from pixedge_export.report_page import render
from pixedge_export.vision import ParityRow
from tests.small_exports import CONFIG, small_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def data(folder: Path) -> dict:
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))


def small_report(**changes: object) -> Report:
    values: dict = {
        "source": {"name": "a", "layout": "mistral", "sha256": "0" * 64},
        "recipe": {"method": "gptq", "group_size": 32},
        "calibration": {"built_in": True, "samples": 3},
        "linears": [LinearError(0, "mlp.up_proj", 0.5, 0.25)],
        "divergence": {"gptq": {"text": Divergence(7, 0.125, 0.75)}},
        "vision_parity": [ParityRow("a.onnx", 16, 32, 1e-6, 1e-4)],
        "seconds": {"layers": 1.23456},
    }
    return Report(**values | changes)


def test_the_bytes_of_all_parts_are_the_folder(folder: Path, data: dict) -> None:
    """pixedge.json and the reports can't count themselves; everything else is counted once."""
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    counted = sum(size for name, size in files.items() if name not in (MANIFEST, *REPORTS))
    assert sum(data["bytes"].values()) == counted
    assert counted == sum(entry.bytes for entry in open_artifact(folder).files.values())
    assert data["bytes"] == count_bytes(folder)
    assert list(data["bytes"]) == [part for part in PARTS if part != "other_tensors"]


def test_every_part_has_the_bytes_of_its_tensors(folder: Path, data: dict) -> None:
    """The shapes say it without the folder; the headers are what is left of the shards."""
    shapes = expected_shapes(CONFIG)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    packed = [name for name in shapes if is_quantized(name)]
    groups = {name: shapes[name][0] * shapes[name][1] // 32 for name in packed}
    expected = {
        "quantized_weights": sum(
            4 * (sizes[name] // NIBBLES + groups[name] // NIBBLES + shapes[name][1]) for name in packed
        ),
        "scales": sum(2 * groups[name] for name in packed),
        "norms": 2 * CONFIG.decoder.dim * (2 * CONFIG.decoder.n_layers + 1),
        "embeddings": 2 * CONFIG.decoder.vocab_size * CONFIG.decoder.dim,
        "output_head": 2 * CONFIG.decoder.vocab_size * CONFIG.decoder.dim,
        "vision_encoder": 2 * sum(size for name, size in sizes.items() if name.startswith("vision_tower.")),
        "projector": 2 * sum(size for name, size in sizes.items() if name.startswith("multi_modal_")),
        "onnx_graphs": sum(path.stat().st_size for path in folder.glob("*.onnx")),
    }
    assert {part: data["bytes"][part] for part in expected} == expected
    shards = list(folder.glob("*.safetensors"))
    tensors = sum(tensor.nbytes for shard in shards for tensor in load_file(shard).values())
    assert data["bytes"]["tensor_headers"] == sum(shard.stat().st_size for shard in shards) - tensors


def test_what_is_in_no_part_is_still_counted(tmp_path: Path) -> None:
    tensors = {
        "language_model.model.layers.0.self_attn.q_proj.bias": torch.zeros(5),
        "language_model.model.layers.0.self_attn.q_proj.g_idx": torch.zeros(3, dtype=torch.int32),
        "extra": torch.zeros(7, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "vision.onnx.data").write_bytes(bytes(11))
    for name in (MANIFEST, *REPORTS):
        (tmp_path / name).write_bytes(bytes(1000))
    length = (tmp_path / "a.safetensors").stat().st_size - 20 - 12 - 56
    assert count_bytes(tmp_path) == {
        "quantized_weights": 12,
        "other_tensors": 20 + 56,
        "tensor_headers": length,
        "onnx_graphs": 11,
    }


def test_the_page_is_made_from_the_json(folder: Path, data: dict) -> None:
    assert (folder / REPORT_PAGE).read_text(encoding="utf-8") == render(data)


def test_the_manifest_names_neither_report_and_needs_none(folder: Path, tmp_path: Path) -> None:
    assert not set(REPORTS) & open_artifact(folder).files.keys()
    assert (REPORT, REPORT_PAGE) == REPORTS == ("export_report.json", "export_report.html")


def test_the_json_says_what_was_measured_and_where(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_bytes(bytes(10))
    write_report(tmp_path, small_report())
    data = json.loads((tmp_path / REPORT).read_text(encoding="utf-8"))
    machine = data.pop("machine")
    assert data.pop("page_sha256") == hashlib.sha256((tmp_path / REPORT_PAGE).read_bytes()).hexdigest()
    assert is_as_signed((tmp_path / REPORT).read_bytes()) and len(data.pop(KEY)) == 64
    assert data == {
        "source": {"name": "a", "layout": "mistral", "sha256": "0" * 64},
        "recipe": {"method": "gptq", "group_size": 32},
        "calibration": {"built_in": True, "samples": 3},
        "divergence_from_16_bits": {"gptq": {"text": {"tokens": 7, "kl": 0.125, "top1": 0.75}}},
        "linear_errors": [{"layer": 0, "linear": "mlp.up_proj", "rtn": 0.5, "quantized": 0.25}],
        "vision_parity": [{"graph": "a.onnx", "height": 16, "width": 32, "error": 1e-6, "bound": 1e-4}],
        "bytes": {"tokenizer_and_configuration": 10},
        "seconds": {"layers": 1.23},
    }
    assert machine["threads"] == torch.get_num_threads() and machine["gpu"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [REPORT_PAGE, REPORT, "tekken.json"]


def test_a_second_report_replaces_the_first_and_counts_the_same(tmp_path: Path) -> None:
    """An export that was killed while it wrote the reports or the manifest writes them again."""
    (tmp_path / "tekken.json").write_bytes(bytes(10))
    write_report(tmp_path, small_report())
    for name in (MANIFEST, *REPORTS):
        (tmp_path / f"{name}.new").write_bytes(bytes(1000))
    first = {name: (tmp_path / name).read_text(encoding="utf-8") for name in REPORTS}
    write_report(tmp_path, small_report(device=torch.device("cpu")))
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in REPORTS} == first
