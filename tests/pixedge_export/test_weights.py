"""Tensors on their way into an export: checked, and in 16 bits."""

from pathlib import Path

import pytest
import torch

from pixedge.errors import ExportError
from pixedge_export import weights as module
from pixedge_export.checkpoint import open_checkpoint
from pixedge_export.weights import Weights
from tests.small_exports import small_tensors, write_checkpoint

NORM = "language_model.model.norm.weight"
TABLE = "language_model.model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
)
def test_sixteen_bits_are_kept_and_32_become_bfloat16(
    tmp_path: Path, stored: torch.dtype, found: torch.dtype
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in small_tensors().items()}
    weights = Weights(open_checkpoint(write_checkpoint(tmp_path, tensors=tensors)))
    assert weights.read(NORM).dtype == stored
    assert weights.read_16bit(NORM).dtype == found
    assert torch.equal(weights.read_16bit(NORM), tensors[NORM].to(found))
    assert weights.read_float16(NORM).dtype == torch.float16


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rows", [1, 1000, 8192])
def test_one_bad_value_anywhere_names_its_tensor(
    tmp_path: Path, value: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    tensors = small_tensors()
    tensors[TABLE][-1, -1] = value
    weights = Weights(open_checkpoint(write_checkpoint(tmp_path, tensors=tensors)))
    with pytest.raises(ExportError) as raised:
        weights.read(TABLE)
    assert str(raised.value) == f"{TABLE} contains NaN or infinity; check the checkpoint"
    assert weights.read(NORM).shape == (96,)


def test_what_float16_cannot_hold_is_an_error_of_its_own(tmp_path: Path) -> None:
    name = "vision_tower.ln_pre.weight"
    tensors = small_tensors()
    tensors[name][5] = 1e5
    weights = Weights(open_checkpoint(write_checkpoint(tmp_path, tensors=tensors)))
    assert weights.read_16bit(name).max() > 65504
    with pytest.raises(ExportError) as raised:
        weights.read_float16(name)
    assert str(raised.value) == f"{name} contains a value that float16 cannot hold; check the checkpoint"
