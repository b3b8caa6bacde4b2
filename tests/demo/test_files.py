"""The demo's stored files: what their scripts make, small, and apart from what training sees."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "models" / "demo"))

import evaluate
import make_calibration
import make_samples
from pixedge_export.calibration import load_samples
from scenes import TASKS
from turns import is_right

FOLDER = Path(__file__).parents[2] / "models" / "demo"
# The text of a picture is drawn by the fonts and FreeType inside Pillow and OpenCV. A release may move a
# glyph by a pixel, and with it everything that is drawn after it.
MADE_WITH = {"pillow": "13.0.0", "opencv": "5.0.0"}
WRITERS = {
    "calibration": make_calibration.write,
    "held_out": make_samples.write_held_out,
    "pictures": make_samples.write_pictures,
}


def files(folder):
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_is_what_its_script_makes(name, tmp_path):
    WRITERS[name](tmp_path / name)
    stored, made = files(FOLDER / name), files(tmp_path / name)
    differing = [path for path in stored.keys() ^ made.keys()]
    for path in stored.keys() & made.keys():
        if path.endswith(".png"):
            a, b = pixels(stored[path]), pixels(made[path])
            same = a.shape == b.shape and bool((a == b).all())
        else:
            same = stored[path].read_bytes() == made[path].read_bytes()
        if not same:
            differing.append(path)
    installed = {"pillow": PIL.__version__, "opencv": cv2.__version__}
    if differing and installed != MADE_WITH:
        pytest.skip(f"drawn with {installed}, the stored files with {MADE_WITH}, so letters differ slightly")
    assert not differing, f"run models/demo/make_*.py again: {', '.join(sorted(differing)[:5])}"


def test_the_same_seed_makes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_samples.write_held_out(tmp_path / name, seed=5, count=22)
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert {path: file.read_bytes() for path, file in a.items()} == {
        path: file.read_bytes() for path, file in b.items()
    }


def test_the_demo_is_small():
    sources = [
        file
        for file in FOLDER.rglob("*")
        if file.is_file()
        and not file.name.startswith("training.state")
        and not {".mypy_cache", ".ruff_cache", "__pycache__"} & set(file.parts)
    ]
    assert sum(file.stat().st_size for file in sources) < 16e6
    assert sum(file.stat().st_size for file in files(FOLDER / "held_out").values()) < 450e3
    assert sum(file.stat().st_size for file in files(FOLDER / "calibration").values()) < 450e3


def test_no_stored_picture_is_in_two_sets():
    """Seeds are strings that name their purpose, so no two sets can share a stream of random numbers."""
    assert len({evaluate.SEED, make_samples.HELD_OUT_SEED, make_calibration.SEED, 0}) == 4  # 0: training
    sets = {
        name: {pixels(file).tobytes() for path, file in files(FOLDER / name).items() if path.endswith(".png")}
        for name in WRITERS
    }
    for name, found in sets.items():
        others = set().union(*(other for key, other in sets.items() if key != name))
        assert found and not found & others


def test_stored_questions_are_read_as_they_were_drawn():
    stored = evaluate.stored_questions()
    fresh = list(evaluate.fresh_questions(make_samples.HELD_OUT_SEED, make_samples.N_HELD_OUT))
    assert [q.turn.task for q in stored] == list(TASKS) * 20
    assert [q.turn for q in stored] == [q.turn for q in fresh]
    for a, b in zip(stored, fresh, strict=True):
        assert [m["role"] for m in a.messages] == [m["role"] for m in b.messages]
        assert len(a.messages) == (3 if a.turn.task == "follow_up" else 1)
        for part, drawn in zip(a.messages[0]["content"], b.messages[0]["content"], strict=True):
            assert part["type"] == drawn["type"]
            if part["type"] == "image":
                assert np.array_equal(pixels(part["image"]), np.asarray(drawn["image"]))
    assert all(is_right(q.turn, q.turn.answer) for q in stored)


def test_held_out_questions_are_a_calibration_folder_too():
    samples = load_samples(FOLDER / "held_out")
    assert len(samples) == 220 and all(sample.has_picture for sample in samples)


def test_sample_questions_are_about_pictures_that_are_there():
    entries = json.loads((FOLDER / "pictures" / "questions.json").read_text(encoding="utf-8"))
    named = {name for entry in entries for name in entry["pictures"]}
    assert named == {path for path in files(FOLDER / "pictures") if path.endswith(".png")}
    turns = {len(entry["turns"]) for entry in entries}
    pictures = {len(entry["pictures"]) for entry in entries}
    assert turns == pictures == {1, 2}
    tasks = {turn["task"] for entry in entries for turn in entry["turns"]}
    assert tasks == set(TASKS)
