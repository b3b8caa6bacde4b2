"""torch, ONNX Runtime and kernels, broken in the ways that people have met."""

import os
import sys

import onnxruntime
import pytest
import torch

from pixedge.doctor import cpu_proofs, libraries
from pixedge.doctor.finding import Subject
from pixedge.doctor.nvml import Driver
from pixedge.doctor.proof import Proof, prove
from pixedge.kernels.cpu import compiled
from pixedge.kernels.vision import fast

GPU = Subject(cards=("NVIDIA GeForce RTX 4090",))
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def one(findings):
    (finding,) = findings
    return finding


@pytest.fixture
def cuda_build(monkeypatch):
    """Let torch seem to be built for a CUDA, under a driver for another."""

    def build(cuda="13.0", driver=(13, 0)):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(libraries, "find_driver", lambda: (Driver("570.1", driver, ()), ""))

    return build


@no_gpu
def test_a_cpu_build_of_torch_on_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = one(libraries.check_torch(GPU))
    assert finding.level == "red" and "RTX 4090 would not be used" in finding.detail
    assert "pytorch.org" in finding.advice
    # who wants the CPU has what he wants
    assert one(libraries.check_torch(Subject("cpu", cards=GPU.cards))).level == "green"


def test_a_driver_that_is_too_old_for_torch(cuda_build):
    cuda_build("13.0", (12, 4))
    finding = one(libraries.check_torch(GPU))
    assert finding.level == "red"
    assert finding.detail.endswith(
        "is built for CUDA 13.0, which needs a driver of the 580 series or later; the driver is 570.1, which "
        "supports CUDA up to 12.4"
    )
    assert "newer NVIDIA driver" in finding.advice


@no_gpu
def test_a_torch_that_finds_no_device_says_why(cuda_build):
    cuda_build()
    finding = one(libraries.check_torch(GPU))
    assert finding.level == "red" and "cannot use the GPU (" in finding.detail


@pytest.mark.parametrize(
    ("module", "check"),
    [
        ("torch", libraries.check_torch),
        ("onnxruntime", libraries.check_onnxruntime),
        ("triton", libraries.check_triton),
    ],
)
def test_a_library_that_is_missing(monkeypatch, module, check):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pixedge.onnx_runtime", raising=False)
    finding = one(check(GPU))
    assert (finding.name, finding.level) == (module, "red") and "cannot be imported" in finding.detail


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or torch.cuda.is_available(),
    reason="needs a CUDA build of ONNX Runtime without its CUDA libraries",
)
def test_a_cuda_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", onnxruntime.cuda_version)
    finding = one(libraries.check_onnxruntime(GPU))
    assert finding.level == "red" and "lib" in finding.detail and ".so" in finding.detail
    # and a session falls back without a word, which is what the check is for
    fallen = one(libraries.check_provider(GPU))
    assert fallen.level == "red" and "falls back to CPUExecutionProvider" in fallen.detail


def test_cudnn_has_a_package_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(libraries, "_missing_library", lambda *_: "libcudnn.so.9")
    finding = one(libraries.check_onnxruntime(GPU))
    assert "needs libcudnn.so.9" in finding.detail and finding.advice == "pip install nvidia-cudnn-cu13"


def test_torch_and_onnxruntime_for_different_cudas(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    finding = one(libraries.check_onnxruntime(GPU))
    assert finding.level == "red" and "CUDA 13.0 and torch for CUDA 12.8" in finding.detail
    assert finding.advice.endswith("pip install 'onnxruntime-gpu>=1.20,<1.27'")


def test_a_cpu_build_of_onnxruntime_on_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    finding = one(libraries.check_onnxruntime(GPU))
    assert finding.level == "red" and "is a CPU build" in finding.detail


def test_a_session_on_the_cpu():
    finding = one(libraries.check_provider(Subject()))
    assert (finding.level, finding.detail) == ("green", "a session gets CPUExecutionProvider")


@pytest.mark.parametrize(("free", "level"), [(9 * 10**9, "yellow"), (40 * 10**9, "green"), (None, "green")])
def test_memory(monkeypatch, free, level):
    monkeypatch.setattr("pixedge.memory.free_memory", lambda device: free)
    assert one(libraries.check_memory(Subject())).level == level
    assert one(libraries.check_memory(GPU)).level == "green"


# --- kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "level", "words"),
    [("torch", "yellow", "says so"), ("sse9", "red", "use one of"), ("", None, "")],
)
def test_the_variant_of_the_cpu_kernels(monkeypatch, value, level, words):
    monkeypatch.setenv(compiled.VARIABLE, value)
    finding = one(libraries.check_kernels(Subject()))
    assert words in finding.detail
    if level:
        assert finding.level == level and f"unset {compiled.VARIABLE}" in finding.advice


def test_kernels_that_were_not_built(monkeypatch):
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "_open", lambda: None)
    finding = one(libraries.check_kernels(Subject()))
    assert finding.level == "yellow" and "not built" in finding.detail and "install gcc" in finding.advice


@pytest.mark.parametrize("variant", ["", "c", "torch"])
def test_all_cpu_kernels_agree_with_their_references(monkeypatch, variant):
    monkeypatch.setenv(compiled.VARIABLE, variant)
    finding = one(cpu_proofs.check_cpu_kernels(Subject()))
    assert finding.level == "green", finding
    assert int(finding.detail.split()[0]) >= 4  # torch's own products have references too


def test_a_kernel_that_computes_something_else_is_named(monkeypatch):
    if fast.vision_library() is None:
        pytest.skip("this machine has no kernels for the encoder")
    real = fast.linear
    monkeypatch.setattr(fast, "linear", lambda *operands, **how: real(*operands, **how) * 1.1)
    wrong, right = cpu_proofs.check_cpu_kernels(Subject())
    assert (wrong.name, wrong.level) == ("cpu kernel: encoder's linear", "red")
    assert "off by 1.0e-01" in wrong.detail and right.level == "green"


def test_a_kernel_that_fails_or_gives_nan_is_red():
    def fails():
        raise MemoryError("no room")

    nan = torch.full((3,), torch.nan)
    found = list(
        prove(
            [Proof("a", 0.1, fails), Proof("b", 0.1, lambda: (nan, nan)), Proof("c", 0, lambda: None)], "cpu"
        )
    )
    assert [(finding.name, finding.level) for finding in found] == [
        ("cpu kernel: a", "red"),
        ("cpu kernel: b", "red"),
    ]
    assert "no room" in found[0].detail


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Triton's interpreter
def test_the_gpu_kernels_proofs_hold():
    """On the device where there is one, else under Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    from pixedge.doctor import gpu_proofs
    from pixedge.kernels.cuda import tuning

    device = torch.device("cpu" if tuning.interpreted() else "cuda:0")
    found = list(prove(list(gpu_proofs.gpu_proofs(device)), "gpu"))
    assert [finding.level for finding in found] == ["green"], found
    (finding,) = found
    assert finding.level == "green" and finding.detail.startswith("13 agree"), finding
    assert os.environ.get("TRITON_INTERPRET") == "1" or device.type == "cuda"
