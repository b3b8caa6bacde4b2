"""Folders of GPTQModel 7.7: the config.json that it wrote itself for a random Pixtral with a theta of 1e9.

Every one of these was refused for its made-up rope_parameters at the top (theta 10000). The weights beside
them are packed here, with numpy, in the form that the file names; the dense model that they are compared with
turns by 1e9.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pixedge
from pixedge.engine import Engine
from pixedge.known_shapes import PIXTRAL_12B
from pixedge.linear import Int8Linear
from pixedge_export.importer import import_folder
from pixedge_export.known_picture import known_conversation
from tests.gptq_folders import CONFIG, Variant, write_gptq_folder
from tests.random_models import CPU, Tensors, TorchVision, build_decoder, build_encoder

WRITTEN = sorted((Path(__file__).parent / "gptqmodel_configs").glob("*.json"))
TURNING = replace(CONFIG, decoder=replace(CONFIG.decoder, rope_theta=PIXTRAL_12B.decoder.rope_theta))


def dense_engine(tensors: Tensors, theta: float) -> Engine:
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, rope_theta=theta))
    decoder = build_decoder(config, tensors)
    head = Int8Linear(decoder.lm_head.weight.bfloat16(), torch.float32, CPU)
    decoder.lm_head.weight.copy_(head.weight.float() * head.scales.float()[:, None])
    vision = TorchVision(build_encoder(config, tensors))
    return Engine(config, decoder, vision, CPU, torch.float32, frozenset())


def test_the_files_are_as_gptqmodel_wrote_them() -> None:
    assert len(WRITTEN) == 6
    for file in WRITTEN:
        data = json.loads(file.read_text(encoding="utf-8"))
        assert data["quantization_config"]["meta"]["quantizer"] == ["gptqmodel:7.7.0"]
        assert data["rope_parameters"]["rope_theta"] == 10_000.0
        assert data["text_config"]["rope_parameters"]["rope_theta"] == 1e9


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.stem)
def test_its_folders_turn_by_the_texts_own_theta(file: Path, tmp_path: Path) -> None:
    said = json.loads(file.read_text(encoding="utf-8"))["quantization_config"]
    variant = Variant(
        group_size=said["group_size"],
        symmetric=said["sym"],
        act_order=said["desc_act"],
        checkpoint_format=said["checkpoint_format"],
        modules=True,
    )
    meant = write_gptq_folder(tmp_path / "source", variant)
    shutil.copyfile(file, tmp_path / "source" / "config.json")
    out = import_folder(tmp_path / "source", tmp_path / "out", threads=1, device="cpu")
    model = pixedge.load(out, device="cpu", dtype="float32")
    assert model.config == TURNING
    prompt = model.tokenizer.encode(known_conversation())
    found = model.engine.score(prompt)
    torch.testing.assert_close(found, dense_engine(meant, 1e9).score(prompt), atol=2e-3, rtol=0)
    made_up = dense_engine(meant, 1e4).score(prompt)
    assert float((found - made_up).abs().mean()) > 0.05  # what a false pass would need
