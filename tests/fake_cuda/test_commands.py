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
