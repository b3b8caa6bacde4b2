"""What holds for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

import pixedge  # noqa: F401 - before any test imports ONNX Runtime, whose telemetry it turns off


def pytest_configure(config: pytest.Config) -> None:
    """Without `-m gpu` no GPU is seen and Triton's kernels are interpreted: tests are the same everywhere.

    `-m fake_gpu` sees the stand-in driver's.
    Both are asked for before triton is imported and CUDA is begun with.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # What runs in a shell's background inherits this, and so would every program that a test interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr not in ("gpu", "fake_gpu"):
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if config.option.markexpr == "gpu":
        from tests.gpu_record import Record

        config.pluginmanager.register(Record(), "gpu_record")


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
