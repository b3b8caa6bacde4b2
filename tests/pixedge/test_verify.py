"""pixedge verify: passes on what was exported, and says what is wrong with anything else."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pixedge.artifact import INDEX, MANIFEST, open_artifact
from pixedge.errors import ArtifactError, PixedgeError
from pixedge.verify import Check, check_files, verify_artifact
from pixedge_export.safetensors_writer import save_tensors
from tests.small_exports import alter_json, alter_shard, hash_again, small_export

PREFIX = "language_model.model.layers.0."
SCALES = f"{PREFIX}mlp.gate_proj.scales"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "copy")


def verify(folder: Path) -> list[Check]:
    return verify_artifact(folder, device="cpu", threads=1)


def failure(folder: Path) -> Check:
    """Verify a folder whose last check must fail and whose others must not."""
    *passed, failed = verify(folder)
    assert all(check.ok for check in passed) and not failed.ok
    return failed


def test_what_was_exported_passes(original: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    checks = verify_artifact(original, lambda *step: steps.append(step), device="cpu")
    assert [(check.name, check.ok) for check in checks] == [
        ("files", True),
        ("tensors", True),
        ("known picture", True),
    ]
    assert checks[1].detail == "87 tensors, 2 layers, all names and shapes as the config says"
    phases = list(dict.fromkeys(phase for phase, _, _ in steps))
    assert phases == ["hash", "weights", "vision"]
    done, total = max((done, total) for phase, done, total in steps if phase == "hash")
    assert done == total > 1_000_000


def test_any_flipped_bit_in_any_file_is_found(original: Path, folder: Path) -> None:
    """The manifest and the reports too, whose digests are in themselves: bits at random, and at both ends."""
    draw = random.Random(0)
    for file in sorted(folder.iterdir()):
        clean = file.read_bytes()
        for place in {0, len(clean) - 1, *(draw.randrange(len(clean)) for _ in range(8))}:
            data = bytearray(clean)
            data[place] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
            try:
                found = check_files(open_artifact(folder))
                assert not found.ok and file.name in found.detail, (file.name, place)
            except PixedgeError:
                continue  # the folder does not even open
        file.write_bytes(clean)
    assert check_files(open_artifact(folder)).ok


@pytest.mark.parametrize(
    "name", ["model-00003-of-00004.safetensors", "tokenizer.json", "vision_encoder.onnx"]
)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit(folder: Path, name: str, place: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)
    checks = verify(folder)
    assert checks == [
        Check("files", False, f"changed since the export: {name}; copy them again or export again")
    ]


def test_what_is_not_complete_is_not_checked(folder: Path) -> None:
    (folder / "tekken.json").unlink()
    with pytest.raises(ArtifactError, match=r"tekken\.json is missing, expected .* bytes"):
        verify(folder)
    shutil.rmtree(folder)
    with pytest.raises(ArtifactError, match="is not a folder"):
        verify(folder)


def test_a_newer_format(folder: Path) -> None:
    alter_json(folder / MANIFEST, lambda data: data.update(format_version=2))
    with pytest.raises(
        ArtifactError, match="format version 2 and this pixedge reads 1; export again, or inst"
    ):
        verify(folder)


def test_a_dropped_tensor_with_new_hashes(folder: Path) -> None:
    alter_shard(folder, SCALES, lambda tensors: tensors.pop(SCALES))
    alter_json(folder / INDEX, lambda data: data["weight_map"].pop(SCALES))
    hash_again(folder)
    assert failure(folder) == Check("tensors", False, f"{folder} lacks {SCALES}; export again")


def test_a_misshapen_tensor_with_new_hashes(folder: Path) -> None:
    name = "vision_tower.ln_pre.weight"
    alter_shard(folder, name, lambda tensors: tensors.update({name: tensors[name][:-1]}))
    hash_again(folder)
    found = failure(folder)
    assert found.name == "tensors" and f"{name} is [31], expected [32]; export again" in found.detail


def altered(folder: Path, name: str, factor: float) -> Check:
    """Multiply a tensor and verify, with the hashes made right again."""

    def multiply(tensors: dict[str, Tensor]) -> None:
        tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)

    alter_shard(folder, name, multiply)
    hash_again(folder)
    return verify(folder)[-1]


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        (SCALES, 2.0),
        (f"{PREFIX}self_attn.o_proj.scales", 2.0),
        ("language_model.lm_head.weight", 1.5),
        ("language_model.model.norm.weight", -1.0),
        ("vision_tower.patch_conv.weight", -1.0),
        ("multi_modal_projector.linear_2.weight", 2.0),
    ],
)
def test_altered_weights_with_new_hashes(folder: Path, name: str, factor: float) -> None:
    """Every name and shape is right, so only the known picture can tell: decoder and encoder both."""
    found = altered(folder, name, factor)
    assert (found.name, found.ok) == ("known picture", False), found
    assert "nats on average (limit 0.1); export again" in found.detail


def test_weights_that_give_nan_fail(folder: Path) -> None:
    found = altered(folder, "language_model.model.norm.weight", float("nan"))
    assert (found.name, found.ok) == ("known picture", False)
    assert "drift by nan nats" in found.detail


def test_swapped_layers_drift(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    first, second = (folder / index[name] for name in (SCALES, SCALES.replace("layers.0.", "layers.1.")))
    first_tensors, second_tensors = load_file(first), load_file(second)
    save_tensors(first, {name.replace("layers.1.", "layers.0."): t for name, t in second_tensors.items()})
    save_tensors(second, {name.replace("layers.0.", "layers.1."): t for name, t in first_tensors.items()})
    hash_again(folder)
    assert failure(folder).name == "known picture"


@pytest.mark.parametrize(
    "known",
    [None, {}, {"messages": [], "logprobs": [-1.0]}, {"messages": 3, "logprobs": []}, {"logprobs": "x"}],
)
def test_a_manifest_without_a_known_picture(folder: Path, known: object) -> None:
    alter_json(folder / MANIFEST, lambda data: data.update(known_picture=known))
    found = failure(folder)
    assert found.name == "known picture"
    assert found.detail.startswith("pixedge.json does not hold a known conversation (")


def test_float32_and_bfloat16_agree_on_the_known_picture(original: Path) -> None:
    """The export scores in float32, the runtime in bfloat16: what that costs is far below the limit."""
    drift = float(verify(original)[-1].detail.partition("drift by ")[2].split()[0])
    assert 0 < drift < 0.03
    assert torch.tensor(drift).isfinite()
