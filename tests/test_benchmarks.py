"""The benchmarks run, in a size that takes seconds, and end with a line of JSON whose figures make sense."""

import json
import os
import runpy
import subprocess
import sys

import pytest

from tests.exported_demo import ROOT, environment, exported_demo


def last_line(base, script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(base), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    table, _, line = done.stdout.rstrip("\n").rpartition("\n")
    assert table.count("\n") >= 4
    return json.loads(line)


def test_decoder(tmp_path):
    size = ["--layers", 1, "--prompts", 40, "--contexts", 24, "--batches", 2, "--vision-layers", 1]
    found = last_line(tmp_path, "decoder.py", "--tiny", "--repeats", 2, "--sides", 32, 64, *size)
    assert found["shape"] == "tiny" and found["layers"] == 1 and found["whole_layers"] == 4
    cases = [(c["batch"], c["context"], c["bits"], c["tokens"]) for c in found["cases"]]
    assert cases == [(1, 24, 8, 1), (1, 24, 16, 1), (2, 512, 8, 1), (1, 0, 8, 40)]
    for case in found["cases"]:
        # 4 layers in the tiny shape, one of them made
        assert abs(case["seconds"] - 4 * case["layers_seconds"] - case["head_seconds"]) < 1e-5
        assert case["tokens_per_second"] > 0 and case["share_of_limit"] > 0
    assert found["read_bytes_per_second"] > 1e8
    assert found["picture_seconds"].keys() == {"32", "64"}


def test_solver(tmp_path):
    found = last_line(tmp_path, "solver.py", "--rows", 1024, "--repeats", 1)
    (row,) = found["sizes"]
    assert (row["out"], row["in"], row["rows"]) == (512, 256, 1024)
    # on rows that it has not seen, the solver loses less than rounding does
    assert 0 < row["ours"]["error"] < 0.8 * row["rtn_error"]
    assert row["ours"]["solve_seconds"] > 0


@pytest.mark.slow  # three exports
def test_bits(tmp_path):
    """On a few samples; with so few, only what is far apart can be told apart."""
    names = ["rtn", "exported", "no catching up"]
    found = last_line(tmp_path, "bits.py", "--samples", 12, "--variants", *names)
    assert found["calibration_samples"] == [12] and list(found["variants"]) == names
    rtn, exported, _ = (found["variants"][name]["image"]["kl"][0] for name in names)
    assert 0 < exported < 0.7 * rtn


def test_vision(tmp_path):
    found = last_line(tmp_path, "vision.py", "--tiny", "--sides", 32, 64, "--repeats", 1)
    assert found["shape"] == "tiny" and [row["side"] for row in found["pictures"]] == [32, 64]
    for row in found["pictures"]:
        assert row["cosine"]["ours"] > 0.999 and row["seconds"]["ours"] > 0
    assert found["peak_bytes"]["ours"] > 1e8


def test_constraint(tmp_path):
    size = ["--tekken", ROOT / "models" / "demo" / "tekken.json", "--scale", 0.02, "--tokens", 4]
    found = last_line(tmp_path, "constraint.py", *size)
    assert found["vocabulary"] == 3072 and len(found["formats"]) == 4
    for row in found["formats"]:
        mask = row["mask_seconds"]
        assert 0 < mask["median"] <= mask["greatest"] < 0.5 and row["masks"] > 20
        assert all(abs(step["lost_seconds"]) < 1 for step in row["steps"].values())


def test_speed_takes_medians():
    middle = runpy.run_path(str(ROOT / "benchmarks" / "speed.py"))["middle"]
    rounds = [{"name": "a", "cases": [{"seconds": s, "tokens": 4}]} for s in (3.0, 1.0, 2.0)]
    assert middle(rounds) == {"name": "a", "cases": [{"seconds": 2.0, "tokens": 4}]}


def test_serving(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    size = ["--tokens", 24, "--repeats", 1, "--asks", 2, "--clients", 1, 2, "--streams", 1, 3, "--threads", 1]
    found = last_line(base, "serving.py", "--model", exported_demo(base), *size)
    assert [row["streams"] for row in found["throughput"]] == [1, 3]
    assert all(row["ratio"] > 0 for row in found["throughput"])
    assert [(row["clients"], row["requests"]) for row in found["first_token"]] == [(1, 2), (2, 4)]
    assert all(0 < row["p50_seconds"] <= row["p99_seconds"] for row in found["first_token"])
    assert found["turns"]["cached_tokens"] >= 96


def test_gpu(tmp_path):
    """In triton's interpreter, whose times mean nothing: what runs on a card must not fail there first."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    found = last_line(tmp_path, "gpu.py", "--tiny", "--device", "cpu")
    assert found["shape"] == "tiny" and found["left_out"] == []
    assert [(row["batch"], row["context"]) for row in found["decode"]] == [(1, 8), (1, 40), (2, 8), (2, 40)]
    assert "do not fit" in found["decode"][3]["why"]
    for row in found["decode"][:3]:
        assert abs(row["tokens_per_second"] * row["seconds"] - row["batch"]) < 1e-6
        assert 0 < row["share_of_limit"] < 1 and row["graph_seconds"] > 0
    assert [row["batch"] for row in found["answers"]] == [1, 2]
    first = found["first_token"]["seconds"]
    assert first["first_token"] >= first["encode"] + first["prefill"] > 0
    assert {row["product"] for row in found["products"]} == {"qkv", "o", "gate_up", "down"}
    assert found["encoder"]["by"] == "ONNX Runtime" and found["memory"]["planned"] > 0
    assert "PIXEDGE_LLAMA_PYTHON" in found["llama_cpp"]["why"]
