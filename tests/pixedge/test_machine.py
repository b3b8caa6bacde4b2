"""What a report says about the machine."""

import os
import platform
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

import pixedge
from pixedge import machine
from pixedge.machine import describe_machine


def test_without_a_gpu() -> None:
    found = describe_machine()
    assert found == describe_machine(torch.device("cpu"))
    assert list(found) == [
        *("cpu", "cores", "threads", "memory_bytes", "gpu", "gpu_memory_bytes"),
        *("os", "python", "pixedge", "torch", "onnxruntime"),
    ]
    assert found["cpu"].strip() and 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1 << 28
    assert found["gpu"] is found["gpu_memory_bytes"] is None
    assert (found["pixedge"], found["torch"]) == (pixedge.__version__, str(torch.__version__))
    assert (found["onnxruntime"], found["os"]) == (onnxruntime.__version__, platform.platform())


def test_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def properties(device: torch.device) -> SimpleNamespace:
        asked.append(device)
        return SimpleNamespace(name="Some GPU", total_memory=24 << 30)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found = describe_machine(torch.device("cuda:1"))
    assert (found["gpu"], found["gpu_memory_bytes"], asked) == (
        "Some GPU",
        24 << 30,
        [torch.device("cuda:1")],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags : a\n\nmodel name\t: Other\n",
            "Some CPU @ 3 GHz",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", platform.processor() or platform.machine()),
        (None, platform.processor() or platform.machine()),
    ],
)
def test_the_processors_name(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    assert machine._cpu_name(file) == expected


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    found = describe_machine()
    assert found["memory_bytes"] is None and found["cores"] == os.cpu_count()
