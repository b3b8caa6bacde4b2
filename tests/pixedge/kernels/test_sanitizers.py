"""The C kernels under the address and undefined-behaviour sanitizers, on odd sizes and exact memory.

The programs beside this file allocate each operand to the byte, so that a read or write past an end is seen,
and run every variant that the CPU has on several numbers of threads. The first holds each against plain C, so
it shows for an Arm CPU too, emulated, that its kernels are right.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pixedge.kernels.cpu_variants import USABLE

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "pixedge" / "kernels" / "cpu"
FLAGS = ["-std=gnu11", "-O1", "-g", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variants"),
    [("sanitized_kernels.c", USABLE), ("sanitized_prompts.c", [each for each in USABLE if each == "amx"])],
)
def test_no_read_or_write_goes_astray(tmp_path: Path, name: str, variants: list[str]) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = tmp_path / "kernels"
    sources = [str(HERE / name), *map(str, sorted(SOURCES.glob("*.c")))]
    command = [compiler, *FLAGS, *SANITIZERS, f"-I{SOURCES}", "-o", str(program), *sources, "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(done.stdout.split()) == sorted(variants)


@pytest.mark.slow
def test_the_kernels_for_arm_compute_what_plain_c_does(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no compiler and emulator for Arm (gcc-aarch64-linux-gnu, qemu-user) is installed")
    program = tmp_path / "kernels"
    sources = [str(HERE / "sanitized_kernels.c"), *map(str, sorted(SOURCES.glob("*.c")))]
    command = [compiler, *FLAGS, "-O3", "-static", f"-I{SOURCES}", "-o", str(program), *sources, "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["c", "neon"], done.stdout + done.stderr[-4000:]
