"""Triton builds a small C file at its first launch: what is said where gcc or Python.h is really missing.

gcc is hidden by a PATH without it, Python.h by a home of Python that has the library and no headers. Triton's
cache is empty, as at a first start; once it has been built nothing of this is needed.
"""

import json
import os
import re
import site
import sys
from pathlib import Path

import pytest

from tests.fake_cuda.conftest import Run

COMPILER = re.compile(r"(^|-)(cc|c89|c99|gcc|clang)(-\d+)?$")


@pytest.fixture
def no_header(tmp_path: Path) -> dict[str, str]:
    """Variables that give Python a home without headers."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "lib").symlink_to(Path(sys.base_prefix) / "lib")
    paths = [os.environ["PYTHONPATH"], *site.getsitepackages()]
    return {"PYTHONHOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def no_compiler(tmp_path: Path) -> dict[str, str]:
    """Variables whose PATH has everything but compilers."""
    place = tmp_path / "bin"
    place.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*"):
            if not COMPILER.search(program.name) and not (place / program.name).exists():
                (place / program.name).symlink_to(program)
    return {"PATH": str(place)}


@pytest.mark.parametrize("hidden", ["no_compiler", "no_header"])
def test_a_sentence_and_then_without(
    hidden: str, folder: Path, tmp_path: Path, pixedge: Run, request: pytest.FixtureRequest
) -> None:
    """Raw it was a RuntimeError of Triton's, or gcc's words and a CalledProcessError."""
    cache, variables = tmp_path / "triton", request.getfixturevalue(hidden)
    ask = ("run", "--model", folder, "--device", "cuda", "--quiet", "Hi")
    done = pixedge(*ask, TRITON_CACHE_DIR=cache, **variables)
    assert done.returncode == 1 and done.stdout == ""
    what = "a C compiler" if hidden == "no_compiler" else f"Python.h ({variables['PYTHONHOME']}/include/"
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"pixedge: the GPU kernels need {what}") and "Traceback" not in done.stderr
    for words in ("build-essential python3.", "gcc python3-devel (Fedora)", "gcc python (Arch)"):
        assert words in line

    found = pixedge("doctor", "--quick", "--json", TRITON_CACHE_DIR=cache, **variables)
    findings = {each["name"]: each for each in json.loads(found.stdout)["findings"]}
    name = "compiler" if hidden == "no_compiler" else "Python.h"
    assert findings[name]["level"] == "red" and "build-essential" in findings[name]["advice"]
    assert findings["Python.h" if name == "compiler" else "compiler"]["level"] == "green"

    assert pixedge(*ask, TRITON_CACHE_DIR=cache).returncode == 0
    assert pixedge(*ask, TRITON_CACHE_DIR=cache, **variables).returncode == 0  # from Triton's cache


def test_a_compiler_that_fails(folder: Path, tmp_path: Path, pixedge: Run) -> None:
    program = tmp_path / "cc"
    program.write_text("#!/bin/sh\necho 'no stdlib.h here' >&2\nexit 3\n")
    program.chmod(0o755)
    done = pixedge(
        "run", "--model", folder, "--device", "cuda", "Hi", CC=program, TRITON_CACHE_DIR=tmp_path / "triton"
    )
    assert done.returncode == 1 and "no stdlib.h here" in done.stderr and "Traceback" not in done.stderr
    assert f"{program} failed to build Triton's small C file (exit code 3" in done.stderr
