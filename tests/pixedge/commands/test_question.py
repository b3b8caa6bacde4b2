"""Pictures that a question names: attached, or an error, and never sent as text without a word."""

import io
import os
import sys

import pytest
from PIL import Image

from pixedge.cli import main
from pixedge.commands.question import Question, read_question
from pixedge.errors import ImageError, UsageError
from tests.exported_demo import PICTURES, exported_demo, pixedge

SHAPES = PICTURES / "shapes.png"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "it is.png", "other.png", "scan"):
        Image.new("RGB", (32, 32)).save(tmp_path / name, "PNG")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "arguments, images, text, pictures",
    [
        (["photo.png What is this?"], [], "What is this?", ["photo.png"]),
        (["photo.png", "What is this?"], [], "What is this?", ["photo.png"]),
        (["What is this?", "photo.png"], [], "What is this?", ["photo.png"]),
        (["it is.png", "photo.png", "What are these?"], [], "What are these?", ["it is.png", "photo.png"]),
        (["it is.png What is this?"], [], "What is this?", ["it is.png"]),
        (["scan", "What is this?"], [], "What is this?", ["scan"]),
        (["What is in photo.png?"], ["other.png"], "What is in photo.png?", ["other.png", "photo.png"]),
        (["What is in photo.png?"], ["./photo.png"], "What is in photo.png?", ["./photo.png"]),
        (["What is this?"], [], "What is this?", []),
        (["scan this"], [], "scan this", []),
    ],
)
def test_pictures_among_the_words(arguments, images, text, pictures):
    assert read_question(arguments, images) == Question(text, tuple(pictures))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "arguments, kind, words",
    [
        (["none.png What is this?"], ImageError, "none.png does not exist"),
        (["none.png", "What is this?"], ImageError, "none.png does not exist"),
        (["What is in sub/none.png?"], ImageError, "sub/none.png does not exist"),
        (["photo.png", "What", "is it?"], UsageError, "in 2 parts, 'What' and 'is it?'"),
        (["photo.png", ""], UsageError, "the question is empty"),
    ],
)  # fmt: skip
def test_what_leads_nowhere_is_an_error(arguments, kind, words):
    with pytest.raises(kind) as caught:
        read_question(arguments, [])
    assert words in str(caught.value)


@pytest.mark.usefixtures("folder")
def test_a_name_in_a_sentence_that_leads_nowhere_is_noted(capsys):
    text = "Is it as large as none.png?"
    assert read_question([text], []) == Question(text, ())
    assert "none.png is not a file here" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "piped, expected",
    [
        ("photo.png What is this?\n", Question("What is this?", ("photo.png",))),
        ("A log:\n/no/such.png 404\n", Question("A log:\n/no/such.png 404", ())),
    ],
)
def test_a_line_from_a_pipe_is_read_as_typed_and_a_text_is_not(monkeypatch, piped, expected):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
    assert read_question([], []) == expected


@pytest.mark.usefixtures("folder")
def test_a_prompt_of_a_batch_names_no_pictures(capsys):
    for prompt, words in (
        ("photo.png What is this?", "--prompt names the picture photo.png"),
        ("none.png What is this?", "none.png does not exist"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["batch", "other.png", "--prompt", prompt, "--out", "o.jsonl"])
        assert ended.value.code in (1, 2) and words in capsys.readouterr().err


# In processes, with the demo

LINES = r"""
/no/such/none.png What colour is the star?
nichtda.png What colour is the star?
./nichtda.png What colour is the star?
~/none.png What colour is the star?
What colour is the star in /no/such/shapes.png?
https://example.com/a.png What colour is the star?
/no/such/sh*.png What colour is the star?
x.svg What colour is the star?
C:\Pictures\pic.png What colour is the star?
""".strip().splitlines()


def test_a_chat_answers_nothing_about_a_picture_that_is_not_there(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    folder = exported_demo(base)
    lines = [*LINES, f"'{SHAPES}' What colour is the star?"]
    done = pixedge(base, "chat", "--quiet", "--model", folder, input="\n".join(lines))
    assert done.returncode == 1
    assert done.stdout == "The star is yellow.\n"
    errors = done.stderr.splitlines()
    assert len(errors) == len(LINES)
    for line, error in zip(LINES, errors, strict=True):
        name = next(word for word in line.rstrip("?").split() if "." in word)
        assert error.startswith(f"pixedge: {name} "), error


def test_run_takes_a_picture_as_a_word_or_in_the_question(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    folder = exported_demo(base)
    shown = os.path.relpath(SHAPES, PICTURES.parents[2])
    for words in ([f"{shown} What colour is the star?"], [SHAPES, "What colour is the star?"]):
        done = pixedge(base, "run", "--model", folder, *words)
        assert (done.returncode, done.stdout) == (0, "The star is yellow.\n"), done.stderr
        assert "attached " in done.stderr
    done = pixedge(base, "count", "--model", folder, "--json", SHAPES, "What colour is the star?")
    assert '"tokens": 96' in done.stdout
