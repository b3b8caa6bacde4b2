"""The commands of a user with a card, on the stand-in driver."""

import json
from pathlib import Path

import pytest

from tests.exported_demo import PICTURES
from tests.fake_cuda.conftest import Run

PICTURE = PICTURES / "shapes.png"


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("pictures", [0, 2])
def test_run(device: str, pictures: int, folder: Path, pixedge: Run) -> None:
    """Every load by auto and cuda once ended in a traceback: torch wants a device with its index."""
    images = ["--image", PICTURE] * pictures
    done = pixedge("run", "--model", folder, "--device", device, "--json", *images, "What is this?")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finish_reason"] == "stop" and set(found["text"]) == {"a"}  # as sitecustomize has it
    assert found["peak_memory_bytes"]["cuda"] > 0


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
