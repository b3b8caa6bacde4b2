"""The commands of a user with a card, on the stand-in driver."""

import itertools
import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from tests.exported_demo import PICTURES, ROOT
from tests.fake_cuda.conftest import Run

PICTURE = PICTURES / "shapes.png"
REPORT = re.compile(
    r"(\d+) graphs.* while capturing (\d+) allocations, (\d+) synchronisations, (\d+) pageable copies; "
    r".* (\d+) of them overwritten"
)


def faults(stderr: str) -> tuple[int, tuple[int, ...]]:
    """Give the graphs of the process that had most, and what a real card would have refused."""
    graphs, *found = max(tuple(map(int, each)) for each in REPORT.findall(stderr))
    return graphs, tuple(found)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("pictures", [0, 2])
def test_run(device: str, pictures: int, folder: Path, pixedge: Run) -> None:
    """Every load by auto and cuda once ended in a traceback: torch wants a device with its index."""
    images = ["--image", PICTURE] * pictures
    ask = ("--model", folder, "--device", device, "--json", *images, "What is this?")
    done = pixedge("run", *ask, FAKE_REPORT=1)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finish_reason"] == "stop" and set(found["text"]) == {"a"}  # as sitecustomize has it
    assert found["kv_cache"]["bits"] == 8
    assert found["peak_memory_bytes"]["cuda"] > 0
    graphs, found = faults(done.stderr)
    assert graphs >= 1 and found == (0, 0, 0, 0)


def test_a_card_that_is_not_there(folder: Path, pixedge: Run) -> None:
    done = pixedge("run", "--model", folder, "--device", "cuda:1", "Hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pixedge: device is 'cuda:1', but the only CUDA device is cuda:0; use that\n"


def test_nothing_is_printed_that_pixedge_did_not_write(folder: Path, pixedge: Run) -> None:
    """ONNX Runtime warned at every start of a session key that was set twice, and of its own plugins."""
    done = pixedge(
        "run", "--model", folder, "--device", "cuda", "--json", "--quiet", "--image", PICTURE, "Hi"
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert [line for line in done.stderr.splitlines() if not line.startswith("pixedge: ")] == []


def test_a_driver_that_is_too_old_for_torch(folder: Path, pixedge: Run) -> None:
    """The CPU must not stand in for the card without a word; torch says so in a warning of Python's."""
    old = {"FAKE_DRIVER": "570.86.10", "FAKE_CUDA": 12080}
    reason = "which needs a driver of the 580 series or later; this one supports CUDA 12.8"
    done = pixedge("run", "--model", folder, "--device", "cuda", "Hi", **old)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr and done.stderr.count("\n") == 1
    done = pixedge("run", "--model", folder, "--quiet", "Hi", **old)
    assert done.returncode == 0
    assert done.stderr.startswith("pixedge: the GPU is not used: torch is built for CUDA 13.0, ")
    assert reason in done.stderr
    done = pixedge("doctor", "--quick", "--json", **old)
    (torch,) = (each for each in json.loads(done.stdout)["findings"] if each["name"] == "torch")
    assert torch["level"] == "red" and "570.86.10" in torch["detail"] and "580 series" in torch["detail"]


@pytest.mark.parametrize(
    ("dtype", "cache"), [*itertools.product(["bfloat16", "float16", "float32"], ["16bit", "8bit"])]
)
def test_types(dtype: str, cache: str, folder: Path, pixedge: Run) -> None:
    """float32 has no graphs: its size of a step was asked of the card, which waits for it."""
    ask = (
        "--model",
        folder,
        "--device",
        "cuda",
        "--dtype",
        dtype,
        "--kv-cache",
        cache,
        "--image",
        PICTURE,
        "Hi",
    )
    done = pixedge("run", *ask, FAKE_REPORT=1)
    assert done.returncode == 0, done.stderr
    graphs, found = faults(done.stderr)
    assert (graphs == 0) == (dtype == "float32") and found == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        ("--vision-device", "cpu"),
        ("--device", "cpu", "--vision-device", "cuda"),
        ("--temperature", "0.8", "--top-p", "0.9"),
        ("--regex", "[a-c]+"),
    ],
)
def test_other_ways_to_run(options: tuple[str, ...], folder: Path, pixedge: Run) -> None:
    done = pixedge("run", "--model", folder, "--image", PICTURE, *options, "Hi", FAKE_REPORT=1)
    assert done.returncode == 0, done.stderr
    assert faults(done.stderr)[1] == (0, 0, 0, 0)


def test_the_second_card_alone(folder: Path, script, pixedge: Run) -> None:
    """A model on cuda:1 takes nothing of cuda:0: each device has its index all the way down."""
    code = (
        "import json, sys, pixedge\n"
        "from tests.fake_cuda import card\n"
        "model = pixedge.load(sys.argv[1], device='cuda:1')\n"
        "model.generate([{'role': 'user', 'content': 'Hello'}])\n"
        "print(json.dumps(card.counts().used_on))"
    )
    first, second, *_ = script(code, folder, FAKE_DEVICES=2)
    assert first == 0 and second > 0
    done = pixedge("run", "--model", folder, "--device", "cuda:2", "Hi", FAKE_DEVICES=2)
    assert done.returncode == 2 and "the CUDA devices are 0 to 1; name one" in done.stderr


def test_vram_limit(folder: Path, pixedge: Run) -> None:
    ask = ("run", "--model", folder, "--device", "cuda", "--image", PICTURE, "--max-tokens", "4", "Hi")
    assert pixedge(*ask, "--vram-limit", "2GiB").returncode == 0
    done = pixedge(*ask, "--vram-limit", "900MiB")
    assert done.returncode == 1 and done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("pixedge: the model takes 1.") and "may take 900.00 MiB; " in line


def test_a_card_that_is_too_small(folder: Path, pixedge: Run) -> None:
    """Before loading by the plan; while loading where other programs took what was free when it was made."""
    ask = ("run", "--model", folder, "--device", "cuda", "--max-tokens", "4", "Hi")
    done = pixedge(*ask, FAKE_VRAM_MIB=700)
    assert done.returncode == 1 and "pixedge: the model takes " in done.stderr
    done = pixedge(*ask, "--vram-limit", "2GiB", FAKE_VRAM_MIB=475)
    assert done.returncode == 1 and done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("pixedge: ") and "memory" in line and "Traceback" not in done.stderr, done.stderr


def test_chat(folder: Path, pixedge: Run) -> None:
    done = pixedge(
        "chat", "--model", folder, "--device", "cuda", "--image", PICTURE, stdin="What?\nAnd now?\n"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2, done.stdout


def test_batch(folder: Path, tmp_path: Path, pixedge: Run) -> None:
    out = tmp_path / "answers.jsonl"
    done = pixedge(
        "batch",
        PICTURES,
        "--model",
        folder,
        "--device",
        "cuda",
        "--prompt",
        "What?",
        "--out",
        out,
        FAKE_REPORT=1,
    )
    assert done.returncode == 0, done.stderr
    assert faults(done.stderr)[1] == (0, 0, 0, 0)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == len(list(PICTURES.glob("*.png"))) and not any(line.get("error") for line in lines)


def test_profile(folder: Path, pixedge: Run) -> None:
    few = ("--repeats", 1, "--prompt", 64, "--depth", 0, "--batch", 2, "--side", 64, "--requests", 2)
    done = pixedge("profile", "--model", folder, "--device", "cuda", *few, "--json", FAKE_REPORT=1)
    assert done.returncode == 0, done.stderr
    assert faults(done.stderr)[1] == (0, 0, 0, 0)
    found = json.loads(done.stdout)
    assert found["model"]["device"] == "cuda:0"
    assert found["machine"]["gpu"]


def test_doctor(folder: Path, pixedge: Run) -> None:
    """What looks at numbers is red, since nothing is computed; all else about the card is green."""
    done = pixedge("doctor", "--model", folder, "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    for name in ("driver", "gpu", "compiler", "Python.h", "torch", "triton", "onnxruntime"):
        assert found[name]["level"] == "green", found[name]
    red = {name for name, each in found.items() if each["level"] == "red"}
    computed = {"provider", "encoder", "known picture", "gpu kernel: greedy choice", "gpu kernel: draw"}
    assert red <= computed | {"onnxruntime package", "packages"}, [found[name] for name in red]
    assert "provider" in red


def test_the_triton_of_dev_is_the_one_that_torch_asks_for() -> None:
    """The CPU build of torch, with which the other tests run, names none."""
    (pinned,) = (each for each in metadata.requires("torch") or () if each.startswith("triton"))
    assert f'"{pinned.partition(";")[0].strip()};' in (ROOT / "pyproject.toml").read_text()
