"""Tests on the stand-in driver: `make test-fake-gpu`, which starts pytest on it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.exported_demo import ROOT, environment, exported_demo
from tests.fake_cuda import card

HERE = Path(__file__).parent

Run = Callable[..., subprocess.CompletedProcess[str]]
Script = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here; without the driver they are skipped."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.fake_gpu)
        if card.driver() is None:
            item.add_marker(pytest.mark.skip(reason="not on the stand-in driver; run make test-fake-gpu"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exports and state lie."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def folder(base: Path) -> Path:
    """Return the demo, exported on the CPU."""
    return exported_demo(base)


@pytest.fixture
def pixedge(base: Path) -> Run:
    """Run the command on the stand-in driver; variables describe the card."""

    def run(*arguments: object, stdin: str | None = None, **variables: object):
        given = environment(base) | {name: str(value) for name, value in variables.items()}
        return subprocess.run(
            [sys.executable, "-m", "pixedge", *map(str, arguments)],
            cwd=ROOT,
            env=given,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def script(base: Path) -> Script:
    """Run a program on the stand-in driver; give the JSON of its last line. Variables describe the card."""

    def run(code: str, *arguments: object, **variables: object) -> Any:
        given = environment(base) | {name: str(value) for name, value in variables.items()}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
