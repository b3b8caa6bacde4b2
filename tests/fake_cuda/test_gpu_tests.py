"""The tests for a GPU that look at no value, as `make test-gpu` runs them."""

import subprocess
import sys
from pathlib import Path

from tests.exported_demo import ROOT, environment

BLIND = (
    "tests/gpu/test_demo.py::test_the_kernels_run_it",
    "tests/gpu/test_demo.py::test_nothing_is_allocated_after_the_warm_up",
)


def test_the_gpu_tests_that_look_at_no_value(base: Path) -> None:
    """Memory stays flat over 210 requests of all kinds, the largest picture of them included."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *BLIND],
        cwd=ROOT,
        env=environment(base),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(BLIND)} passed" in done.stdout
