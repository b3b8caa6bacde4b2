"""What `make first-run` collects: all of it, nothing of a person's, also where packages are missing."""

import json
import os
import subprocess
import sys
import tarfile
import time

import pytest

from tests.exported_demo import ROOT, environment
from tests.small_exports import small_export

sys.path.insert(0, str(ROOT / "benchmarks"))
from first_run import LARGEST_OUTPUT, Collection, Stage
from first_run_words import Words

# Hides packages, as they are hidden from a Python that never had them.
_WITHOUT = """
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run it for a person whose folders, user and model have telling names; give what the archive holds."""
    base = tmp_path_factory.mktemp("first_run")
    model = base / "home" / "secret-user" / "secret-model"
    model.parent.mkdir(parents=True)
    model.symlink_to(small_export(tmp_path_factory.getbasetemp()))

    def run(*stages, without=()):
        site = base / "_".join(["site", *without])
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(_WITHOUT.format(names=set(without)))
        given = environment(base) | {"HOME": str(model.parent), "LOGNAME": "secret-user"}
        given["PYTHONPATH"] = str(site)  # the script adds the checkout by itself
        out = base / "first-run.tar.gz"
        command = [ROOT / "benchmarks" / "first_run.py", "--tiny", "--model", model, "--out", out, "--only"]
        done = subprocess.run(
            [sys.executable, *map(str, command), *stages],
            cwd=base, env=given, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert 0 < out.stat().st_size < 5_000_000
        with tarfile.open(out) as tar:
            assert {(member.uname, member.uid) for member in tar} == {("", 0)}
            return {name.removeprefix("first-run/"): tar.extractfile(name).read() for name in tar.getnames()}

    return run


def last_json(data):
    return json.loads(data.decode().splitlines()[-1])


def test_what_it_finds_on_a_cpu(run):
    found = run("answer", "placement", "encoder-ranges", "steps", "gpu-tests", "kernels", "gpu")
    states = {each["stage"]: each["state"] for each in json.loads(found["summary.json"])}
    done = ("machine", "answer", "placement", "encoder-ranges", "steps")
    assert {name for name, state in states.items() if state == "done"} == set(done), found
    for name in ("gpu-tests", "kernels", "gpu"):
        assert states[name].startswith("left out: needs ") and "a CUDA device" in states[name]
    assert b'"completion_tokens"' in found["answer.txt"]
    assert last_json(found["placement.txt"])["copies"] == 0
    ranges = last_json(found["encoder-ranges.txt"])
    # two layers of seven linears, the patches and the adapter, and no Gemm is left out
    assert ranges["limit"] == 65504 and len(ranges["linears"]) == 2 * 7 + 3
    assert all(takes > 0 and gives > 0 for takes, gives in ranges["linears"].values())
    steps = last_json(found["steps.txt"])
    assert steps["loaded"]["planned"] > 0
    assert found["trace.json.gz"][:2] == b"\x1f\x8b"
    machine = found["machine.txt"].decode()
    for title in ("wsl", "driver", "nvidia-smi", "ldconfig -p", "packages"):
        assert f"== {title}\n" in machine
    assert "numpy==" in machine and "pixedge==" not in machine  # which was installed from a person's folder
    whole = b"\n".join(found.values())
    assert b"secret" not in whole and str(ROOT).encode() not in whole
    assert b"\x89PNG" not in whole and b"\xff\xd8\xff" not in whole


def test_each_package_that_is_missing_is_a_sentence(run):
    found = run("answer", "steps", without=("triton", "onnxruntime", "onnx", "cv2"))
    said = found["machine.txt"].decode().partition("== what is missing\n")[2]
    assert "triton is missing, so torch computes in place of the GPU kernels; pip install 'triton'\n" in said
    assert "onnxruntime-gpu is missing, so no picture is encoded; pip install 'onnxruntime-gpu'\n" in said
    assert "opencv-python-headless is missing, so no picture is resized;" in said
    assert "Traceback" not in said
    states = {each["stage"]: each["state"] for each in json.loads(found["summary.json"])}
    assert states["answer"] == states["steps"] == "left out: needs cv2, onnxruntime"


@pytest.fixture
def collection(tmp_path):
    (tmp_path / "found").mkdir()
    return Collection(tmp_path / "found", Words({str(tmp_path): "PLACE"}), dict(os.environ))


def test_a_stage_that_hangs_is_ended_with_its_children(collection, tmp_path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = "import subprocess, sys; print('begun', flush=True)\n"
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    assert collection.run(Stage("hangs", ("-c", code), 2)) is None
    assert collection.summary[-1]["state"] == "stopped after 2 s"
    assert (collection.folder / "hangs.txt").read_text() == "begun\n"
    assert collection.run(Stage("crashes", ("-c", "import os; os.abort()"), 20)) not in (0, None)
    assert collection.run(Stage("goes on", ("-c", "print(1)"), 20)) == 0
    time.sleep(4)
    assert not mark.exists()


def test_too_much_is_cut(collection, tmp_path, capsys):
    code = "print('first'); print('x' * 2_000_000); print('last')"
    collection.run(Stage("long", ("-c", code), 60))
    text = (collection.folder / "long.txt").read_text()
    assert len(text) < LARGEST_OUTPUT + 100 and text.startswith("first\n") and text.endswith("last\n")
    (collection.folder / "trace.json.gz").write_bytes(os.urandom(6_000_000))
    collection.pack(tmp_path / "out.tar.gz")
    assert "too large: trace.json.gz" in capsys.readouterr().out
    with tarfile.open(tmp_path / "out.tar.gz") as tar:
        assert sorted(tar.getnames()) == ["first-run/long.txt", "first-run/summary.json"]


SMI = """\
| 30%   42C    P8    20W / 450W |    812MiB / 24564MiB |      3%      Default |
+-----------------------------------------+------------------------+----------------------+

+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|    0   N/A  N/A    4242      G   /opt/secret/viewer divorce.pdf             300MiB |
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/checkout/pixedge/a.py", "CHECKOUT/pixedge/a.py"),
        ('File "/mnt/c/Users/Eve/a b.py", line 2', 'File "PATH", line 2'),
        ("C:\\Users\\Eve\\Pictures\\x.png is", "PATH is"),
        ("/home/eve/x.png, /data/cats", "PATH, PATH"),
        ("https://example.com/a/b, 3 tokens/s, a/b", "https://example.com/a/b, 3 tokens/s, a/b"),
        ("(/usr/lib/x86_64-linux-gnu/libcuda.so.1)", "(/usr/lib/x86_64-linux-gnu/libcuda.so.1)"),
        ("24 GB, 3 GB free; held by secret-tool (12, 2 GB)", "24 GB, 3 GB free"),
    ],
)  # fmt: skip
def test_words_of_a_person(text, expected):
    assert Words({"/checkout": "CHECKOUT"}).replace(text) == expected


def test_programs_of_a_person_are_not_in_nvidia_smi():
    text = Words({}).replace(SMI)
    assert "24564MiB" in text and "secret" not in text and "divorce" not in text
