"""The JSON line that ends `pytest -m gpu`."""

import json
import platform
from collections import Counter
from typing import Any

import pytest
import torch


class Record:
    """What the tests found; a plugin of pytest."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.figures: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
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

    def pytest_unconfigure(self) -> None:
        if self.outcomes:
            print(json.dumps(self.to_json()))
