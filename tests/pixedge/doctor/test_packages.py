"""Packages: clashes, what is missing, what does not fit."""

from importlib import metadata

import pytest

from pixedge.doctor import packages
from pixedge.doctor.finding import Subject

GPU = Subject(cards=("NVIDIA GeForce RTX 4090",))


@pytest.fixture
def installed(monkeypatch):
    """Make these the packages that are installed, and what pixedge needs."""

    def install(needed=(), **versions):
        found = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(packages, "_version", found.get)
        monkeypatch.setattr(metadata, "requires", lambda name: list(needed))

    return install


@pytest.mark.parametrize(
    ("versions", "subject", "level", "words"),
    [
        ({"onnxruntime_gpu": "1.31.1"}, GPU, "green", "onnxruntime-gpu 1.31.1"),
        ({"onnxruntime": "1.31.1"}, Subject(), "green", "onnxruntime 1.31.1"),
        ({"onnxruntime": "1.31.1"}, GPU, "red", "no CUDA"),
        ({"onnxruntime": "1.31.1"}, Subject("cpu", cards=GPU.cards), "green", "onnxruntime 1.31.1"),
        ({}, Subject(), "red", "none is installed"),
        ({"onnxruntime": "1.30", "onnxruntime_gpu": "1.31.1"}, Subject(), "red", "overwrite each other's"),
        ({"onnxruntime_gpu": "1.31.1", "ort_nightly": "1.32"}, GPU, "red", "overwrite each other's"),
    ],
)
def test_packages_of_onnxruntime(installed, versions, subject, level, words):
    installed(**versions)
    (finding,) = packages.check_runtimes(subject)
    assert finding.level == level and words in finding.detail


def test_two_packages_are_both_taken_away(installed):
    installed(onnxruntime="1.30", onnxruntime_gpu="1.31.1")
    (finding,) = packages.check_runtimes(Subject())
    advice = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu>=1.28,<2'"
    assert finding.advice == advice


def test_versions_out_of_range_and_packages_that_are_missing(installed):
    needed = [
        "torch>=2.13,<2.14",
        "numpy>=2",
        "rich>=13",
        "other; sys_platform == 'none'",
        "onnx; extra == 'export'",
    ]
    installed(needed, torch="2.9.1+cu128", numpy="2.3")
    (finding,) = packages.check_requirements(Subject())
    assert finding.level == "red"
    assert finding.detail == "rich>=13 is missing; torch 2.9.1+cu128 does not fit torch<2.14,>=2.13"
    assert finding.advice == "pip install 'rich>=13' 'torch<2.14,>=2.13'"
    installed(needed, torch="2.13.0+cpu", numpy="2.3", rich="14.0")
    (finding,) = packages.check_requirements(Subject())
    assert finding.level == "green" and "the 3 packages" in finding.detail


def test_a_checkout_that_is_not_installed(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    (finding,) = packages.check_requirements(Subject())
    assert finding.level == "green" and "from its sources" in finding.detail


def test_extras_are_named(installed):
    installed(onnx="1", onnxscript="1", pypdfium2="5")
    (finding,) = packages.check_extras(Subject())
    assert finding.detail == "extras installed: export, pdf; not installed: heic"
