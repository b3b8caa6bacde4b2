"""The vision encoder's C under sanitizers, by the program beside this file."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pixedge.kernels.vision.fast import vision_library

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[2] / "pixedge" / "kernels"
FLAGS = ["-std=gnu11", "-O1", "-g", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-pthread"]


@pytest.mark.slow
@pytest.mark.skipif(vision_library() is None, reason="needs a CPU with AVX-512 and bfloat16")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_no_read_write_or_race_goes_astray(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    sources = [HERE / "sanitized_vision.c", *(KERNELS / "cpu" / name for name in ("pool.c", "tiles.c"))]
    sources += sorted(path for path in (KERNELS / "vision").glob("*.c") if path.stem != "onnx_operators")
    program = tmp_path / "vision"
    command = [compiler, *FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command += [f"-I{KERNELS / 'vision'}", "-o", str(program), *map(str, sources), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "1" in done.stdout.split()
