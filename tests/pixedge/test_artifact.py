"""Opening an exported folder: what is refused and in which words, and what the decoder is filled with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixedge.artifact import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    REPORTS,
    check_tensors,
    load_decoder,
    open_artifact,
)
from pixedge.errors import ArtifactError
from pixedge.linear import Int4Linear, Int8Linear
from tests.small_exports import CONFIG, alter_json, alter_shard, hash_again, small_export, small_tensors

CPU = torch.device("cpu")
LAYER = "language_model.model.layers.1."
SCALES = f"{LAYER}self_attn.k_proj.scales"
HEAD = "language_model.lm_head.weight"
VISION = "vision_tower.transformer.layers.0.feed_forward.up_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "copy")


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as raised:
        open_artifact(folder)
    return str(raised.value)


def test_it_opens(original: Path) -> None:
    artifact = open_artifact(str(original))
    assert (artifact.folder, artifact.config, artifact.group_size) == (original, CONFIG, 32)
    assert artifact.files.keys() == {path.name for path in original.iterdir()} - {MANIFEST, *REPORTS}
    assert artifact.tensors(f"{LAYER}self_attn.k_proj.").keys() == {"qweight", "qzeros", "scales", "g_idx"}
    assert torch.equal(artifact.tensors(HEAD)[""], small_tensors()[HEAD])
    check_tensors(artifact)


def test_no_folder_and_no_export(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        f"{tmp_path / 'none'} is not a folder; export a checkpoint first: pixedge export CHECKPOINT"
    )
    assert refusal(tmp_path) == (
        f"{tmp_path} has no pixedge.json, so it is not a finished export; make one: pixedge export CHECKPOINT"
    )


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", None])
def test_another_format(folder: Path, version: object) -> None:
    alter_json(folder / MANIFEST, lambda data: data.update(format_version=version))
    assert refusal(folder) == (
        f"{folder / MANIFEST} has format version {version!r} and this pixedge reads {FORMAT_VERSION}; export "
        "again, or install the pixedge that wrote it"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("files"),
        lambda data: data.update(files=["a"]),
        lambda data: data["files"].update({"tekken.json": {"bytes": 3}}),
        lambda data: data["files"].update({"tekken.json": 3}),
        lambda data: data.pop("recipe"),
        lambda data: data["recipe"].update(group_size="many"),
        lambda data: data["recipe"].update(group_size=0),
    ],
)
def test_a_damaged_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    alter_json(folder / MANIFEST, change)
    message = refusal(folder)
    assert message.startswith(f"{folder / MANIFEST} is damaged (") and message.endswith("); export again")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_manifest_that_is_not_json(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    assert str(folder / MANIFEST) in refusal(folder)


@pytest.mark.parametrize("name", ["tekken.json", "params.json", INDEX, "vision_encoder.onnx"])
def test_a_missing_file(folder: Path, name: str) -> None:
    expected = (folder / name).stat().st_size
    (folder / name).unlink()
    assert refusal(folder) == (
        f"{folder / name} is missing, expected {expected:,} bytes; copy the folder again or export again"
    )


@pytest.mark.parametrize("name", ["model-00001-of-00004.safetensors", "tokenizer.json"])
def test_a_short_file(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-7])
    assert refusal(folder) == (
        f"{folder / name} has {len(data) - 7:,} bytes, expected {len(data):,} bytes; copy the folder again "
        "or export again"
    )


def test_the_reports_may_be_deleted(folder: Path) -> None:
    for name in REPORTS:
        (folder / name).unlink()
    open_artifact(folder)


def test_an_index_that_leads_elsewhere(folder: Path) -> None:
    """Only files of the manifest are ever opened."""
    alter_json(folder / INDEX, lambda data: data["weight_map"].update({HEAD: "../secret.safetensors"}))
    hash_again(folder)
    assert refusal(folder) == (
        f"{folder / INDEX} has {HEAD} in '../secret.safetensors', which pixedge.json does not list; "
        "export again"
    )
    alter_json(folder / INDEX, lambda data: data["weight_map"].update({HEAD: ["a"]}))
    hash_again(folder)
    assert "in ['a'], which" in refusal(folder)
    alter_json(folder / INDEX, lambda data: data.pop("weight_map"))
    hash_again(folder)
    assert refusal(folder) == f"{folder / INDEX} has no weight_map; export again"


def tensor_refusal(folder: Path) -> str:
    """Open a folder whose hashes are right; what is wrong shows before any weight is placed."""
    hash_again(folder)
    artifact = open_artifact(folder)
    steps: list[int] = []
    with pytest.raises(ArtifactError) as raised:
        load_decoder(artifact, torch.float32, CPU, lambda done, total: steps.append(done))
    assert steps == []
    return str(raised.value)


def in_index(folder: Path, change: Callable[[dict], None]) -> None:
    alter_json(folder / INDEX, lambda data: change(data["weight_map"]))


@pytest.mark.parametrize("name", [SCALES, VISION, HEAD, f"{LAYER}input_layernorm.weight"])
def test_a_dropped_tensor(folder: Path, name: str) -> None:
    alter_shard(folder, name, lambda tensors: tensors.pop(name))
    in_index(folder, lambda weight_map: weight_map.pop(name))
    assert tensor_refusal(folder) == f"{folder} lacks {name}; export again"


def test_many_dropped_tensors(folder: Path) -> None:
    def without_attention(names: dict) -> None:
        for name in [name for name in names if name.startswith(f"{LAYER}self_attn.")]:
            names.pop(name)

    alter_shard(folder, SCALES, without_attention)
    in_index(folder, without_attention)
    assert (
        tensor_refusal(folder)
        == f"{folder} lacks {LAYER}self_attn.q_proj.qweight and 15 more tensors; export again"
    )


@pytest.mark.parametrize("name", [SCALES, VISION])
def test_a_renamed_tensor(folder: Path, name: str) -> None:
    """The runtime reads the encoder's weights by offset and would not notice; other engines would."""

    def rename(names: dict) -> None:
        names["x" + name] = names.pop(name)

    alter_shard(folder, name, rename)
    in_index(folder, rename)
    message = tensor_refusal(folder)
    assert f"holds x{name}, for which the config has no place; export again" in message


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        (SCALES, "[4, 64]", "[3, 64]"),
        (VISION, "[49, 32]", "[48, 32]"),
        (f"{LAYER}input_layernorm.weight", "[97]", "[96]"),
    ],
)
def test_a_misshapen_tensor(folder: Path, name: str, found: str, expected: str) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])

    alter_shard(folder, name, grow)
    assert tensor_refusal(folder).endswith(f": {name} is {found}, expected {expected}; export again")


@pytest.mark.parametrize(
    ("name", "dtype", "sentence"),
    [
        (VISION, torch.float32, "is F32, expected F16; export again"),
        (HEAD, torch.int32, "is I32, expected BF16 or F16 or F32; export again"),
    ],
)
def test_a_tensor_of_another_type(folder: Path, name: str, dtype: torch.dtype, sentence: str) -> None:
    alter_shard(folder, name, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    assert tensor_refusal(folder).endswith(f": {name} {sentence}")


def test_an_index_that_is_not_what_the_shards_hold(folder: Path) -> None:
    in_index(folder, lambda weight_map: weight_map.update({HEAD: "model-00001-of-00004.safetensors"}))
    assert tensor_refusal(folder) == (
        f"{folder / INDEX} has {HEAD} in model-00001-of-00004.safetensors, but it is in "
        "model-00002-of-00004.safetensors; export again"
    )


def test_an_index_with_a_tensor_too_many(folder: Path) -> None:
    in_index(folder, lambda weight_map: weight_map.update(more="model-00001-of-00004.safetensors"))
    assert "has more in model-00001-of-00004.safetensors, but it is in none" in tensor_refusal(folder)


def test_a_shard_that_is_no_safetensors_file(folder: Path) -> None:
    file = folder / "model-00003-of-00004.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    message = tensor_refusal(folder)
    assert message.startswith(f"{file} cannot be read (") and "export again" in message


def test_a_shard_that_goes_away_while_loading(folder: Path) -> None:
    artifact = open_artifact(folder)
    (folder / artifact.weight_map[f"{LAYER}mlp.up_proj.scales"]).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.tensors(LAYER)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (SCALES, lambda t: t.fill_(torch.nan), "a scale is not a positive finite number"),
        (f"{LAYER}mlp.up_proj.qzeros", lambda t: t.fill_(0), "a zero point is 1"),
        (f"{LAYER}mlp.up_proj.g_idx", lambda t: t.copy_(t.flip(0)), r"g_idx is not i // 32"),
    ],
)
def test_values_that_cannot_be(
    folder: Path, name: str, change: Callable[[Tensor], Tensor], sentence: str
) -> None:
    alter_shard(folder, name, lambda tensors: change(tensors[name]))
    hash_again(folder)
    with pytest.raises(ArtifactError, match=sentence) as raised:
        load_decoder(open_artifact(folder), torch.float32, CPU)
    assert name.rpartition(".")[0] in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_is_filled(original: Path, dtype: torch.dtype) -> None:
    steps: list[tuple[int, int]] = []
    artifact = open_artifact(original)
    decoder = load_decoder(artifact, dtype, CPU, lambda done, total: steps.append((done, total)))
    linears = [module for module in decoder.layers.modules() if isinstance(module, Int4Linear)]
    assert len(linears) == 7 * CONFIG.decoder.n_layers
    assert isinstance(decoder.lm_head, Int8Linear)
    values = [*decoder.parameters(), *decoder.buffers()]
    assert not any(value.is_meta or value.requires_grad for value in values)
    assert {value.dtype for value in decoder.parameters()} == {dtype}
    assert not decoder.training
    table = small_tensors()["language_model.model.embed_tokens.weight"]
    assert torch.equal(decoder.embed_tokens.weight, table.to(dtype))
    # two layers, the norm, the embeddings, the head
    assert steps == [(done, 5) for done in range(6)]


def test_the_manifest_lists_what_it_hashes(original: Path) -> None:
    manifest = json.loads((original / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["format_version"] == FORMAT_VERSION
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
