"""What torch's CUDA asks of the driver, and what is said where it does not fit."""

import pytest
import torch

from pixedge import cuda_fit, loading
from pixedge.errors import UsageError


@pytest.mark.parametrize(
    ("built", "driver", "words"),
    [
        ("13.0", (12, 8), "which needs a driver of the 580 series or later; this one supports CUDA 12.8"),
        ("12.6", (11, 4), "a driver of the 525 series or later"),
        ("14.1", (13, 0), "a newer driver"),
        ("13.0", (13, 0), ""),
        ("12.8", (12, 4), ""),  # minor versions are compatible
        ("12.8", (13, 0), ""),
        (None, (12, 4), ""),
        ("13.0", None, ""),
    ],
)
def test_a_driver_against_a_cuda(monkeypatch, built, driver, words):
    monkeypatch.setattr(cuda_fit, "driver_cuda", lambda: driver)
    found = cuda_fit.driver_too_old(built)
    assert words in found and bool(found) == bool(words)


def test_a_machine_without_a_driver_has_none():
    if not torch.cuda.is_available():
        assert cuda_fit.driver_cuda() is None


def test_the_choice_of_a_device_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda_fit, "driver_cuda", lambda: (12, 4))
    with pytest.raises(UsageError, match=r"needs a driver of the 580 series .* CUDA 12\.4; install a newer"):
        loading.choose_device("cuda")
    assert loading.choose_device("auto").type == "cpu"
    assert "pixedge: the GPU is not used: torch is built for CUDA 13.0" in capsys.readouterr().err
    assert loading.choose_device("cpu").type == "cpu"
    assert capsys.readouterr().err == ""
