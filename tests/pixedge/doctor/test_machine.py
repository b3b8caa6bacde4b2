"""The machine below the libraries, with drivers and cards that a test makes up."""

import os
import shutil
from collections import namedtuple

import pytest

from pixedge.doctor import machine, nvml
from pixedge.doctor.finding import Subject
from pixedge.doctor.nvml import Card, Driver, Holder, cards_on_the_bus, read_driver

GB = 10**9
CARD = Card("NVIDIA GeForce RTX 4090", 24 * GB, 23 * GB, ())


class Library:
    """An NVML of two cards; ``failing`` names a function that answers with an error."""

    def __init__(self, failing=None):
        self.failing = failing
        self.shut = False

    def __getattr__(self, name):
        def call(*arguments):
            if name == self.failing:
                return 9
            answer = getattr(self, f"_{name.removeprefix('nvml')}")
            return answer(*arguments) or 0

        return call

    def _Init_v2(self):
        pass

    def _Shutdown(self):
        self.shut = True

    def _SystemGetDriverVersion(self, text, length):
        text.value = b"575.51.03"

    def _SystemGetCudaDriverVersion_v2(self, version):
        version._obj.value = 12090

    def _DeviceGetCount_v2(self, count):
        count._obj.value = 2

    def _DeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = 100 + index

    def _DeviceGetName(self, handle, text, length):
        text.value = b"NVIDIA GeForce RTX 4090" if handle.value == 100 else b"NVIDIA GeForce RTX 3060"

    def _DeviceGetMemoryInfo(self, handle, memory):
        memory._obj.total, memory._obj.free = 24 * GB, 10 * GB

    def _DeviceGetComputeRunningProcesses_v3(self, handle, count, processes):
        count._obj.value = 1 if handle.value == 100 else 0
        processes[0].pid, processes[0].bytes = os.getpid(), 13 * GB


def test_the_driver_is_read():
    library = Library()
    driver = read_driver(lambda name: library)
    assert (driver.version, driver.cuda) == ("575.51.03", (12, 9))
    first, second = driver.cards
    assert (first.name, first.total, first.free) == ("NVIDIA GeForce RTX 4090", 24 * GB, 10 * GB)
    assert first.holders == (Holder(os.getpid(), "pixedge doctor", 13 * GB),)
    assert second.holders == () and library.shut


def test_without_a_driver_there_is_none():
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    assert read_driver(load) is None


def test_a_driver_that_does_not_tell_who_holds_memory_is_read_all_the_same():
    library = Library("nvmlDeviceGetComputeRunningProcesses_v3")
    assert [card.holders for card in read_driver(lambda name: library).cards] == [(), ()]


def test_cards_on_the_bus_are_counted(tmp_path):
    for name, vendor, kind in (
        ("a", "0x10de", "0x030000"),
        ("b", "0x10de", "0x030200"),
        ("sound", "0x10de", "0x040300"),
        ("other", "0x8086", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert cards_on_the_bus(tmp_path) == 2
    assert cards_on_the_bus(tmp_path / "missing") == 0


@pytest.fixture
def driver(monkeypatch):
    """Make the machine one with this driver, or whose driver fails, and so many cards plugged in."""

    def install(driver=None, failure=None, plugged=0):
        def read():
            if failure:
                raise nvml.NvmlError(failure)
            return driver

        monkeypatch.setattr(machine, "read_driver", read)
        monkeypatch.setattr(machine, "cards_on_the_bus", lambda: plugged)

    return install


def levels(findings):
    return [(finding.name, finding.level) for finding in findings]


def test_cards_are_told_with_their_memory_and_who_holds_it(driver):
    held = Card(CARD.name, 24 * GB, 2 * GB, (Holder(41, "python3", 21 * GB), Holder(42, "Xorg", None)))
    driver(Driver("575.51.03", (12, 9), (CARD, held)))
    told, first, second = machine.check_cards(Subject())
    assert "575.51.03, for CUDA up to 12.9" in told.detail
    assert (first.name, first.level, first.detail) == (
        "gpu 0",
        "green",
        f"{CARD.name}, 24.0 GB, 23.0 GB free",
    )
    assert second.level == "yellow"
    assert "held by python3 (41, 21.0 GB), Xorg (42)" in second.detail
    assert "end python3 (41)" in second.advice


@pytest.mark.parametrize(("device", "level"), [("auto", "red"), ("cuda", "red"), ("cpu", "yellow")])
def test_a_card_that_no_driver_uses(driver, device, level):
    driver(plugged=1)
    (finding,) = machine.check_cards(Subject(device))
    assert (finding.level, finding.advice) == (level, "install NVIDIA's driver")
    assert "an NVIDIA card is plugged in" in finding.detail


def test_a_driver_that_does_not_answer(driver):
    driver(failure="nvmlInit_v2 failed with code 18")
    (finding,) = machine.check_cards(Subject())
    assert finding.level == "red" and "code 18" in finding.detail


def test_no_card_is_all_right_unless_one_is_asked_for(driver):
    driver()
    assert levels(machine.check_cards(Subject())) == [("gpu", "green")]
    assert levels(machine.check_cards(Subject("cuda"))) == [("gpu", "red")]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "level"), [(100 * GB, "green"), (20 * GB, "yellow"), (10**7, "red")])
def test_the_disk(monkeypatch, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free, 0, free))
    (finding,) = machine.check_disk(Subject())
    assert finding.level == level and str(os.getcwd()) in finding.detail


@pytest.mark.parametrize(("built", "level"), [(True, "green"), (False, "yellow")])
def test_no_compiler(monkeypatch, tmp_path, built, level):
    """None is needed once the CPU kernels are built."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(machine, "_kernel_files", lambda: iter([tmp_path] if built else []))
    (finding,) = machine.check_compiler(Subject())
    assert (finding.name, finding.level) == ("compiler", level)
    assert level == "green" or "install gcc" in finding.advice


@pytest.mark.parametrize(
    ("programs", "cc", "level"),
    [(["gcc"], None, "green"), (["clang"], None, "green"), (["cc"], None, "red"), (["gcc"], "icc", "red")],
)
def test_with_a_gpu_the_compiler_is_the_one_that_triton_takes(monkeypatch, tmp_path, programs, cc, level):
    """CC, else gcc or clang; a mere cc is not looked for (triton/runtime/build.py)."""
    for program in programs:
        (tmp_path / program).write_text("#!/bin/sh\necho 'of a test'\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if cc:
        monkeypatch.setenv("CC", cc)
    finding = next(iter(machine.check_compiler(Subject(cards=("RTX",)))))
    assert (finding.name, finding.level) == ("compiler", level)
    if level == "red":
        assert ("'icc'" in finding.detail) if cc else ("apt install build-essential" in finding.advice)


@pytest.mark.parametrize("there", [True, False])
def test_with_a_gpu_python_h_is_looked_for(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    finding = list(machine.check_compiler(Subject(cards=("RTX",))))[-1]
    assert (finding.name, finding.level) == ("Python.h", "green" if there else "red")
    assert str(tmp_path / "Python.h") in finding.detail
    assert there or "python3-devel (Fedora)" in finding.advice


def test_a_compiler_is_named(monkeypatch, tmp_path):
    program = tmp_path / "cc"
    program.write_text("#!/bin/sh\necho 'cc of a test 1.0'\necho more\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CC", raising=False)
    (finding,) = machine.check_compiler(Subject())
    assert finding.detail == f"cc of a test 1.0, {program}"


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(machine, "OLDEST_PYTHON", (4, 0))
    (finding,) = machine.check_python(Subject())
    assert finding.level == "red" and "install Python 4.0" in finding.advice


@pytest.mark.parametrize(
    ("flags", "level"), [("sse4_2 avx2 avx512f", "green"), ("sse4_2", "yellow"), (None, "green")]
)
def test_the_instructions_of_a_cpu(monkeypatch, flags, level):
    text = "model name\t: A CPU\n" + (f"flags\t\t: {flags}\n" if flags else "")
    monkeypatch.setattr(machine, "_read", lambda path: text)
    (finding,) = machine.check_cpu(Subject())
    assert finding.level == level and finding.detail.startswith("A CPU, ")
