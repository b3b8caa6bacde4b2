"""Random checkpoints: complete in both layouts, and the same model in each."""

import sys
from pathlib import Path

import pytest
import torch

from pixedge.tokenizer import Tokenizer
from pixedge_export import synthetic
from pixedge_export.checkpoint import Layout, expected_shapes, open_checkpoint
from pixedge_export.synthetic import PIXTRAL_12B, write_synthetic
from tests.small_exports import CONFIG


@pytest.mark.parametrize("layout", ["mistral", "hf"])
def test_it_opens_as_the_model_that_was_asked_for(tmp_path: Path, layout: Layout) -> None:
    write_synthetic(tmp_path, CONFIG, layout)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config, checkpoint.layout) == (CONFIG, layout)
    assert checkpoint.names() == tuple(expected_shapes(CONFIG))
    vision, vocab = CONFIG.vision, CONFIG.decoder.vocab_size
    assert Tokenizer(checkpoint.tokenizer_file(), vision, vocab).vocab_size == vocab


def test_both_layouts_hold_the_same_model(tmp_path: Path) -> None:
    for layout in ("mistral", "hf"):
        write_synthetic(tmp_path / layout, CONFIG, layout, seed=5)
    a, b = (open_checkpoint(tmp_path / layout) for layout in ("mistral", "hf"))
    for name in a.names():
        assert torch.equal(a.tensor(name), b.tensor(name)), name


def test_the_seed_decides(tmp_path: Path) -> None:
    file = "consolidated.safetensors"
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic(tmp_path / folder, CONFIG, seed=seed)
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


def test_a_few_inputs_stand_out(tmp_path: Path) -> None:
    write_synthetic(tmp_path, CONFIG)
    weight = open_checkpoint(tmp_path).tensor("language_model.model.layers.1.mlp.down_proj.weight").float()
    sizes = weight.square().mean(0).sqrt()
    assert sizes.max() > 5 * sizes.median()
    assert int((sizes > 3 * sizes.median()).sum()) == 1


def test_the_real_shape_is_pixtrals() -> None:
    """12.68 billion parameters: 12.25 in the decoder with its head, 0.40 in the encoder, 0.03 in the adapter.

    Encoder: 24 layers of 4 * 1024^2 + 3 * 1024 * 4096 + 2 * 1024, patches of 768 * 1024, and a norm of 1024.
    """
    sizes = {name: torch.Size(shape).numel() for name, shape in expected_shapes(PIXTRAL_12B).items()}
    decoder = sum(size for name, size in sizes.items() if name.startswith("language_model."))
    assert decoder == 12_247_782_400
    encoder = 24 * (4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024) + 768 * 1024 + 1024
    adapter = 1024 * 5120 + 5120 + 5120**2 + 5120
    assert sum(sizes.values()) - decoder == encoder + adapter


def test_the_command_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(synthetic, "SHAPES", {"pixtral-12b": CONFIG})
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["synthetic", "--layers", "1", "--layout", "hf", str(out)])
    synthetic.main()
    assert capsys.readouterr().out == f"{out}\n"
    checkpoint = open_checkpoint(out)
    assert (checkpoint.layout, checkpoint.config.decoder.n_layers) == ("hf", 1)
    assert checkpoint.config.vision == CONFIG.vision
    with pytest.raises(SystemExit, match="is not empty; name a new folder"):
        synthetic.main()
