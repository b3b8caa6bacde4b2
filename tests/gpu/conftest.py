"""Tests that need a CUDA device: `pytest -m gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu_record import Record

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Take what a test measured, for the JSON line; nobody reads it but with `-m gpu`."""
    record = request.config.pluginmanager.get_plugin("gpu_record")
    return record.figures if isinstance(record, Record) else {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where there is no device, before anything is made ready."""
    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__} finds no CUDA device"))
