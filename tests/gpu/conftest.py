"""Tests that need a CUDA device: `pytest -m gpu`, whose last line is JSON."""

import json
import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


class Record:
    """What the tests found, for the JSON line."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.figures: dict[str, Any] = {}

    def add(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        self.outcomes[report.outcome] += 1
        if report.failed:
            self.failed.append(report.nodeid)
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[str(report.longrepr[2])] += 1

    def to_json(self) -> dict[str, Any]:
        here = torch.cuda.is_available()
        return {
            "device": torch.cuda.get_device_name() if here else None,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{name: self.outcomes[name] for name in ("passed", "failed", "skipped")},
            "failures": self.failed,
            "reasons": dict(self.skipped),
            "figures": self.figures,
        }


RECORD = Record()


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """Take what a test measured, for the JSON line."""
    return RECORD.figures


@pytest.fixture(autouse=True)
def a_device() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} finds no CUDA device")
    yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    RECORD.add(report)


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.option.markexpr == "gpu" and RECORD.outcomes:
        print(json.dumps(RECORD.to_json()))
