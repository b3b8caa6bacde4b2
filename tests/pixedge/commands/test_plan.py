"""`pixedge plan`: does it fit, with how much, how fast; without weights, torch or a GPU."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pixedge import memory
from pixedge.cli import main
from pixedge.doctor import nvml
from pixedge.known_shapes import PIXTRAL_12B

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_card(monkeypatch):
    monkeypatch.setattr(nvml, "read_driver", lambda: None)


def ask(*arguments: str):
    return CliRunner().invoke(main, ["plan", *arguments])


def told(*arguments: str) -> dict:
    result = ask(*arguments, "--json")
    assert result.exit_code in (0, 1), result.stderr
    found = json.loads(result.stdout)
    assert found["fits"] == (result.exit_code == 0) == (not found["problems"])
    return found


def test_a_hundred_pages_do_not_fit_the_model_and_what_would_is_told():
    result = ask("pixtral-12b", "--card", "RTX 4090", "--images", "100x1024x1024")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith(
        "does not fit: pixtral-12b on RTX 4090: context 131,072, 100 pictures of 1024x1024"
    )
    assert (
        lines[1] == "  100 pictures of 4,160 tokens are 416,000 tokens, and the model's context holds 131,072"
    )
    assert lines[2] == ("  what would: 31 of these pictures at a time, or all 100 with --max-image-size 560")
    assert "most pictures of this size: 31 in 131,072 tokens, 2,112 for text" in lines
    assert any(line.startswith("first token, 31 pictures encoded") for line in lines)
    # and what it names does fit
    for change in (("--images", "31x1024x1024"), ("--images", "100", "--max-image-size", "560")):
        assert ask("pixtral-12b", "--card", "RTX 4090", *change).exit_code == 0
    for change in (("--images", "32x1024x1024"), ("--images", "100", "--max-image-size", "576")):
        assert ask("pixtral-12b", "--card", "RTX 4090", *change).exit_code == 1


def test_the_promised_contexts_fit():
    assert told("pixtral-12b", "--vram", "24GiB", "--context", "131072", "--kv", "8bit")["fits"]
    assert told("pixtral-12b", "--vram-limit", "12GiB", "--context", "16384", "--kv-cache", "8bit")["fits"]


def test_what_is_left_and_what_else_would_fit():
    found = told(
        *("pixtral-12b", "--vram", "24GiB", "--context", "32768", "--images", "4x1024x1024"),
        *("--batch", "2", "--kv", "8bit"),
    )
    assert found["fits"] and found["total"] + found["left"] == found["limit"] == 24 << 30
    assert sum(size for name, size in found["device"].items() if name != "total") == found["total"]
    assert found["workload"]["cache_tokens"] == 65_536 and found["prompt_tokens"] == 4 * 4160 + 64
    largest = found["largest"]
    for option, key in (("--context", "context"), ("--batch", "batch")):
        asked = (
            ("pixtral-12b", "--vram", "24GiB", "--batch", "2")
            if option == "--context"
            else (*("pixtral-12b", "--vram", "24GiB", "--context", "32768"),)
        )
        assert told(*asked, option, str(largest[key]))["fits"]
        more = largest[key] + (16 if option == "--context" else 1)
        assert not told(*asked, option, str(more))["fits"]
    assert largest["pictures"] == (32_768 - 64) // 4160


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--vram", "7GiB"), r"9.20 GiB are needed, and 7.00 GiB may be taken: too few for any context"),
        (("--vram", "12GiB", "--context", "65536"), "14.00 GiB are needed, and 12.00 GiB may be taken"),
        (
            ("--vram", "24GiB", "--context", "200000", "--kv", "8bit"),
            "24.52 GiB are needed, and 24.00 GiB may be taken",
        ),
        (
            ("--vram", "24GiB", "--context", "4000"),
            "1 picture of 4,160 tokens and 64 tokens of text are 4,224 tokens, and the context is 4,000",
        ),
    ],
)
def test_what_does_not_fit_says_why(arguments, problem):
    assert problem in told("pixtral-12b", *arguments)["problems"]


def test_a_context_that_would_fit_is_named():
    result = ask("pixtral-12b", "--vram", "12GiB", "--context", "65536")
    named = result.stdout.partition("what would: --context ")[2].split()[0]
    assert ask("pixtral-12b", "--vram", "12GiB", "--context", named).exit_code == 0


def test_without_pictures():
    result = ask("pixtral-12b", "--vram", "24GiB", "--images", "0")
    assert result.exit_code == 0 and "encoder activations" not in result.stdout
    assert "pictures" not in result.stdout.splitlines()[0]


def test_speed_is_marked_as_predicted_with_what_bounds_it():
    result = ask("pixtral-12b", "--card", "RTX 3090", "--context", "8192", "--batch", "4")
    assert (
        "speed, predicted and not measured: RTX 3090, 936 GB/s, 71.0 TFLOP/s, assuming 60% of"
        in result.stdout
    )
    assert "decode behind 8,192 tokens, 4 answers" in result.stdout
    found = told("pixtral-12b", "--card", "RTX 3090", "--context", "8192")["predicted"]
    assert found["decode"]["binding"] == "bandwidth" and found["prefill"]["binding"] == "operations"
    assert found["limit_tokens_per_second"] == pytest.approx(found["tokens_per_second"] / 0.6)
    assert found["measured_shares"] is False
    doubled = told("pixtral-12b", "--card", "RTX 3090", "--context", "8192", "--bandwidth", "1872")[
        "predicted"
    ]
    assert doubled["tokens_per_second"] == pytest.approx(2 * found["tokens_per_second"])


def test_a_gpu_of_which_only_the_memory_is_known_has_no_speed():
    assert told("pixtral-12b", "--vram", "24GiB")["predicted"] is None
    assert ask("pixtral-12b", "--vram", "24GiB").stdout.splitlines()[-1].startswith("speed: give --card NAME")
    given = told("pixtral-12b", "--vram", "24GiB", "--bandwidth", "936", "--tflops", "71")["predicted"]
    card = told("pixtral-12b", "--vram", "24GiB", "--card", "RTX 3090")["predicted"]
    assert given | {"machine": ""} == card | {"machine": ""}


def test_on_a_cpu(monkeypatch):
    monkeypatch.setattr(memory, "free_ram", lambda: 20 << 30)
    monkeypatch.setattr(memory, "held_ram", lambda: 0)
    result = ask("pixtral-12b", "--device", "cpu")
    assert result.exit_code == 0
    assert "Python, torch, ONNX Runtime" in result.stdout and "CUDA" not in result.stdout
    assert "read from their file, row by row" in result.stdout
    found = told("pixtral-12b", "--device", "cpu", "--context", "4096")
    assert found["limit"] == 18 << 30 and found["predicted"]["measured_shares"] is True
    monkeypatch.setattr(memory, "free_ram", lambda: None)
    found = told("pixtral-12b", "--device", "cpu")
    assert (found["limit"], found["left"], found["fits"]) == (None, None, True)


@pytest.mark.parametrize(("name", "known"), [("NVIDIA GeForce RTX 4090", True), ("Quadro K5200", False)])
def test_the_card_that_is_there_is_taken(name, known, monkeypatch):
    cards = (nvml.Card(name, 24 << 30, 20 << 30, ()),)
    monkeypatch.setattr(nvml, "read_driver", lambda: nvml.Driver("600.1", (13, 0), cards))
    found = told("pixtral-12b")
    assert found["device_name"] == name and found["limit"] == (24 << 30) - (512 << 20)
    assert (found["predicted"] is not None) == known
    assert told("pixtral-12b", "--vram", "12GiB")["limit"] == 12 << 30
    assert told("pixtral-12b", "--device", "cpu")["setup"]["device"] == "cpu"

    def broken():
        raise nvml.NvmlError("driver and library differ")

    monkeypatch.setattr(nvml, "read_driver", broken)
    assert told("pixtral-12b")["setup"]["device"] == "cpu"


def test_a_checkpoint_folder_and_an_exported_one(tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(PIXTRAL_12B.to_params()))
    named = told("pixtral-12b", "--vram", "24GiB")
    assert told(str(tmp_path), "--vram", "24GiB")["device"] == named["device"]
    (tmp_path / "pixedge.json").write_text(json.dumps({"recipe": {"group_size": 32, "method": "imported"}}))
    imported = told(str(tmp_path), "--vram", "24GiB")
    assert imported["setup"]["group_size"] == 32 and imported["setup"]["zeros"] is True
    assert imported["device"]["linears"] > 1.1 * named["device"]["linears"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pixtral",), "pixtral is no folder and no known shape; .* one of pixtral-12b, demo"),
        (
            ("demo", "--images", "many"),
            "--images is 'many'; give a number and a size, such as 4x1024x1024, or",
        ),
        (("demo", "--images", "4x0x100"), "--images is '4x0x100'; give sides of 1 pixel or more"),
        (("demo", "--vram", "24"), "--vram-limit is '24'; give a number with a unit, such as 24GiB"),
        (("demo", "--card", "GTX 1080"), "'GTX 1080' is no card that is known; "),
        (("demo", "--card", "H100", "--device", "cpu"), "leave one of them out"),
        (("demo", "--device", "cuda"), "no GPU is here and none was named; give --card NAME or --vram SIZE"),
        (
            ("demo", "--vram", "24GiB", "--bandwidth", "900"),
            "give both --bandwidth and --tflops, or a --card",
        ),
        (
            ("demo", "--vram", "24GiB", "--bandwidth", "nan", "--tflops", "1"),
            "--bandwidth is nan; give a number",
        ),
        (("demo", "--context", "0"), "0 is too small; give 1 or more"),
    ],
)
def test_wrong_usage(arguments, sentence):
    result = ask(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert re.search(sentence, result.stderr), result.stderr


def test_an_unreadable_configuration_is_a_sentence(tmp_path):
    (tmp_path / "params.json").write_text("{")
    result = ask(str(tmp_path), "--vram", "24GiB")
    assert result.exit_code == 1 and result.stderr.startswith("pixedge: ") and result.stderr.count("\n") == 1


@pytest.mark.slow  # a time says something on an idle machine only
def test_it_takes_less_than_a_second():
    def once() -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "pixedge", "plan", "pixtral-12b", "--card", "RTX 4090", "--json"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start

    assert any(once() < 1 for _ in range(10))


def test_it_loads_no_torch():
    code = (
        "import sys; sys.argv = ['pixedge', 'plan', 'pixtral-12b', '--card', 'H100']\n"
        "import pixedge.cli\n"
        "try: pixedge.cli.main()\n"
        "finally: print({'torch', 'onnxruntime', 'triton', 'cv2'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout and done.stderr == "set()\n"


def test_the_documentation_shows_what_is_printed():
    text = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n\$ pixedge (.*)\n((?:.*\n)*?)```", text)
    assert len(blocks) == 4
    for command, shown in blocks:
        arguments = shlex.split(command)
        if arguments[0] == "count":
            arguments += ["--model", str(ROOT / "models" / "demo")]
        assert CliRunner().invoke(main, arguments).stdout == shown, command


def test_the_documentation_has_every_component_and_key():
    text = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    found = told("pixtral-12b", "--card", "H100")
    for key in {*found, *found["device"], *found["largest"]}:
        assert f"`{key}`" in text, key
