"""`pixedge count`: tokens of a question and of its pictures, from the configuration and tekken.json alone."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pixedge.cli import main
from pixedge.config import ModelConfig
from pixedge.tokenizer import Tokenizer
from tests.exported_demo import DEMO, PICTURES

SHAPES = str(PICTURES / "shapes.png")
QUESTION = "What colour is the star?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder that has no weights."""
    for name in ("params.json", "tekken.json"):
        shutil.copyfile(DEMO / name, tmp_path / name)
    return tmp_path


def ask(folder: Path, *arguments: str, **options):
    return CliRunner().invoke(main, ["count", "--model", str(folder), *arguments], **options)


def test_counts_are_the_tokenizer_s(folder: Path) -> None:
    config = ModelConfig.load(folder)
    tokenizer = Tokenizer(folder / "tekken.json", config.vision)
    result = ask(folder, "--image", SHAPES, "--image", SHAPES, "--json", QUESTION)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    picture = {"type": "image", "image": Image.open(SHAPES).convert("RGB")}
    content = [picture, picture, {"type": "text", "text": QUESTION}]
    prompt = tokenizer.encode([{"role": "user", "content": content}])
    assert found["prompt_tokens"] == len(prompt.ids)
    assert found["text_tokens"] + sum(picture["tokens"] for picture in found["pictures"]) == len(prompt.ids)
    assert found["pictures"][0] == {"name": SHAPES, "size": [176, 128], "resized": [176, 128], "tokens": 96}
    assert found["share"] == len(prompt.ids) / 4096 == found["prompt_tokens"] / found["context"]


def test_the_page(folder: Path) -> None:
    large = folder / "large.png"
    Image.new("RGB", (1000, 500)).save(large)
    lines = ask(folder, "--image", str(large), "--system", "Be brief.", QUESTION).stdout.splitlines()
    assert lines[1].split() == [str(large), "1000", "x", "500", "256", "x", "128", "136"]
    assert lines[2].startswith("text") and lines[3].startswith("prompt")
    assert lines[4].endswith("% of the model's context of 4,096 tokens, 3,941 are left")


def test_a_cap_takes_fewer(folder: Path) -> None:
    found = json.loads(ask(folder, "--image", SHAPES, "--max-image-size", "64", "--json", QUESTION).stdout)
    assert found["pictures"][0]["resized"] == [64, 48] and found["pictures"][0]["tokens"] == 15


def test_too_many_are_counted_too(folder: Path) -> None:
    result = ask(folder, *("--image", SHAPES) * 60)
    assert result.exit_code == 0
    assert "too many, and the answer needs some too" in result.stdout


def test_pages_are_numbered(folder: Path) -> None:
    document = folder / "two.pdf"
    pages = [Image.new("RGB", (100, 200)), Image.new("RGB", (200, 100))]
    pages[0].save(document, save_all=True, append_images=pages[1:])
    found = json.loads(ask(folder, "--image", str(document), "--json").stdout)
    assert [picture["name"] for picture in found["pictures"]] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "the question is empty"),
        (("",), 2, "the question is empty"),
        (("--image", "nothing.png", QUESTION), 1, "nothing.png does not exist"),
        (("--image", "https://example.com/a.png", QUESTION), 2, "add --allow-url"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], code: int, sentence: str, folder: Path) -> None:
    result = ask(folder, *arguments)
    assert result.exit_code == code and sentence in result.stderr


def test_the_question_may_be_piped(folder: Path) -> None:
    piped = json.loads(ask(folder, "--json", input=f"{QUESTION}\n").stdout)
    assert piped == json.loads(ask(folder, "--json", QUESTION).stdout) and piped["pictures"] == []


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    (folder / "tekken.json").unlink()
    result = ask(folder, QUESTION)
    assert result.exit_code == 1 and "has no tekken.json, by which text is counted" in result.stderr
