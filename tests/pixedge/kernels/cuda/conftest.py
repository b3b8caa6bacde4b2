"""The Triton kernels: in triton's interpreter, and on a GPU with `-m gpu`."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests for a GPU where those are asked for.

    The interpreter makes scalars of arrays of one element, which NumPy 2 advises against.
    """
    on_gpu = config.option.markexpr == "gpu"
    for item in items:
        if HERE not in item.path.parents:
            continue
        if not on_gpu:
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))
        elif item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                reason = f"torch {torch.__version__} finds no CUDA device"
                item.add_marker(pytest.mark.skip(reason=reason))
