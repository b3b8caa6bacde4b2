"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    """Let the Triton kernels run in triton's interpreter, but for `-m gpu`; before triton is imported."""
    if config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


# Examples are bounded by number: on a busy machine one example may take any time.
settings.register_profile("pixedge", deadline=None, print_blob=True)
settings.load_profile("pixedge")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread: on a busy machine, threads that wait for each other slow small models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
