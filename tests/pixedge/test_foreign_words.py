"""What libraries print reaches neither standard output nor standard error, by Python or by native code.

Judged by what a child process wrote to its file descriptors.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, features

from tests.exported_demo import PICTURES, ROOT, environment
from tests.small_exports import small_export

NOISE = """\
import logging, os, sys, warnings
print("printed")
os.write(1, b"written to 1\\n")
os.write(2, b"written to 2\\n")
print("printed to stderr", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


def run(tmp_path: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run Python with modules of tmp_path before the real ones."""
    variables = environment(tmp_path)
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def write_noisy(tmp_path: Path, name: str, noise: str) -> None:
    """Put a package before a real one that prints, and then is the real one."""
    spec = importlib.util.find_spec(name)
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(
        f"{noise}\n__file__ = {spec.origin!r}\n__path__ = {list(spec.submodule_search_locations)!r}\n"
        f"exec(compile(open(__file__, encoding='utf-8').read(), __file__, 'exec'))\n"
    )


def test_an_answer_as_json_is_all_there_is(tmp_path: Path, folder: Path) -> None:
    """ONNX Runtime prints while it is imported; other libraries warn, in two ways."""
    write_noisy(tmp_path, "onnxruntime", NOISE)
    remarks = (
        "import logging, warnings\nwarnings.warn('warned')\nlogging.getLogger(__name__).warning('logged')"
    )
    write_noisy(tmp_path, "safetensors", remarks)
    options = ("--model", folder, "--image", PICTURES / "shapes.png", "--max-tokens", 2, "--seed", 1)
    done = run(tmp_path, "-m", "pixedge", "run", *options, "--json", "--quiet", "What?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["completion_tokens"] == 2
    assert [line for line in done.stderr.splitlines() if not line.startswith("the answer was cut")] == []


def test_preloading_says_nothing(tmp_path: Path) -> None:
    """preload_dlls prints of libraries that it skips or does not find, in some installations."""
    code = (
        "from pixedge import onnx_runtime\n"
        f"onnx_runtime.onnxruntime.preload_dlls = lambda: exec({NOISE!r})\n"
        "onnx_runtime.preload_cuda()\n"
        "print('ours')\n"
    )
    done = run(tmp_path, "-c", code)
    assert (done.stdout, done.stderr) == ("ours\n", "")
    # what others printed before is not lost, nor does a closed stream stop it
    done = run(tmp_path, "-c", "print('before', end=' ')\n" + code)
    assert (done.stdout, done.stderr) == ("before ours\n", "")
    done = run(tmp_path, "-c", "import os, sys; os.close(1); sys.stdout = None\n" + code)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.skipif(not features.check("libtiff"), reason="needs a Pillow with libtiff")
def test_libtiff_does_not_write_of_damage(tmp_path: Path, folder: Path) -> None:
    """It wrote a line to standard error for each damaged line of a picture, in the server too."""
    file = tmp_path / "damaged.tif"
    out = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(out, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(out.getvalue())
    data[400:3000:37] = bytes(value ^ 0x5A for value in data[400:3000:37])
    file.write_bytes(data)
    done = run(tmp_path, "-m", "pixedge", "run", "--model", folder, "--quiet", "--image", file, "What?")
    assert done.returncode == 1
    assert done.stderr.startswith("pixedge: ") and done.stderr.count("\n") == 1, done.stderr
