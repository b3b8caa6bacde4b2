"""The whole examination, on the trained demo and on installations that are broken on purpose."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pixedge.artifact import open_artifact
from pixedge.cli import main
from pixedge.doctor import examination, models
from pixedge.doctor.finding import Finding, Subject, green
from pixedge.doctor.models import find_models
from tests.exported_demo import environment, exported_demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported_demo(tmp_path_factory.getbasetemp())


def examine(base, *arguments, fake=None):
    """Run the command, with ``fake`` ahead of the installed packages for the children."""
    env = environment(base)
    if fake is not None:
        env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(fake)])
    command = [sys.executable, "-m", "pixedge", "doctor", "--json", "--device", "cpu", *map(str, arguments)]
    done = subprocess.run(command, cwd=base, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"ok", "green", "yellow", "red", "findings"}
    assert done.returncode == (0 if report["ok"] else 1)
    assert report["ok"] == (report["red"] == 0) and "Traceback" not in done.stderr
    found = {finding["name"]: finding for finding in report["findings"]}
    assert len(found) == len(report["findings"])
    assert all(bool(each["advice"]) == (each["level"] != "green") for each in report["findings"])
    return found


def test_the_demo_is_proven(folder, tmp_path):
    found = examine(tmp_path, "--model", folder)
    for name in ("python", "torch", "onnxruntime", "provider", "model", "cpu kernels proven"):
        assert found[name]["level"] == "green", found[name]
    assert "of what the export stored" in found["encoder"]["detail"]
    assert found["encoder"]["level"] == found["known picture"]["level"] == "green"


def test_an_altered_model_is_red(folder, tmp_path):
    altered = tmp_path / "altered"
    shutil.copytree(folder, altered)
    shard = altered / "model-00003-of-00006.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    found = examine(tmp_path, "--model", altered)
    assert found["model"]["level"] == "red" and shard.name in found["model"]["detail"]
    assert "export again" in found["model"]["advice"]


def altered_manifest(folder, tmp_path, change):
    """Copy the folder, and change what its manifest says of the known picture."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "pixedge.json").read_text())
    change(manifest["known_picture"])
    (copy / "pixedge.json").write_text(json.dumps(manifest))
    return {finding.name: finding for finding in models.check_answer(Subject("cpu", copy))}


def test_an_encoder_that_computes_something_else_is_red(folder, tmp_path):
    def change(known):
        assert len(known["embeddings"]) == 64
        known["embeddings"] = [value * 1.2 for value in known["embeddings"]]

    found = altered_manifest(folder, tmp_path, change)
    assert found["encoder"].level == "red" and "limit 5%" in found["encoder"].detail
    assert found["known picture"].level == "green"


def test_a_folder_from_before_exports_stored_embeddings(folder, tmp_path):
    found = altered_manifest(folder, tmp_path, lambda known: known.pop("embeddings"))
    assert found["encoder"].level == "green" and "its float32 graph" in found["encoder"].detail


def test_another_answer_to_the_known_picture_is_red(folder, tmp_path):
    def change(known):
        known["logprobs"] = [value - 2 for value in known["logprobs"]]

    found = altered_manifest(folder, tmp_path, change)
    drift = re.search(r"drift by ([\d.]+) nats", found["known picture"].detail)
    assert found["known picture"].level == "red" and float(drift[1]) == pytest.approx(2, abs=0.1)


@pytest.fixture
def broken_torch(tmp_path):
    """Give a folder with a torch that does this when it is imported."""

    def make(code):
        (tmp_path / "fake" / "torch").mkdir(parents=True)
        (tmp_path / "fake" / "torch" / "__init__.py").write_text(code)
        return tmp_path / "fake"

    return make


def test_a_torch_without_one_of_its_libraries(folder, tmp_path, broken_torch):
    fake = broken_torch("raise OSError('libcudart.so.13: cannot open shared object file')")
    found = examine(tmp_path, "--model", folder, fake=fake)
    assert found["torch"]["level"] == "red" and "libcudart.so.13" in found["torch"]["detail"]
    # what needs no torch is examined all the same
    assert found["onnxruntime"]["level"] == found["provider"]["level"] == "green"
    assert found["cpu"]["level"] == "green"
    # and what needs it says so
    for name in ("cpu kernels", "model", "answer"):
        assert "libcudart.so.13" in found[name]["detail"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_torch_that_crashes_takes_no_other_check_along(folder, tmp_path, broken_torch):
    fake = broken_torch("import os; os.abort()")
    found = examine(tmp_path, "--model", folder, "--quick", fake=fake)
    assert "crashed with SIGABRT" in found["torch"]["detail"]
    assert found["model"]["level"] == "red"


def test_a_check_that_hangs_is_stopped(tmp_path, broken_torch, monkeypatch):
    fake = broken_torch("import time; print('x' * 200_000, flush=True); time.sleep(60)")
    monkeypatch.setattr(sys, "path", [str(fake), *sys.path])
    monkeypatch.setattr(examination, "_HEAVY", {"torch": ("libraries", "check_torch", 1.5)})
    (finding,) = [each for each in examination.examine("cpu") if each.name == "torch"]
    assert finding.level == "red" and "took more than 2 s and was stopped" in finding.detail


def test_a_check_that_raises_is_a_red_line_and_the_next_ones_come():
    def raises(subject):
        yield green("before", "seen")
        raise ZeroDivisionError("by chance")

    before, failed = examination.run("thing", raises, Subject())
    assert before.level == "green"
    assert (failed.name, failed.level) == ("thing", "red") and "ZeroDivisionError: by chance" in failed.detail


def test_a_finding_that_is_not_green_needs_advice():
    with pytest.raises(AssertionError):
        Finding("a", "red", "broken")
    with pytest.raises(AssertionError):
        Finding("a", "green", "fine", "do something")


# --- which models -------------------------------------------------------------------------------------------


def test_models_are_found_where_run_would_take_them(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PIXEDGE_MODEL", raising=False)
    assert find_models(None) == []
    (tmp_path / "models").mkdir()
    shutil.copytree(folder, tmp_path / "models" / "b")
    monkeypatch.setenv("PIXEDGE_MODEL", str(folder))
    beside = type(folder)("models/b")
    assert find_models(None) == [folder, beside]
    assert find_models(beside) == [beside]
    assert open_artifact(beside)


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no other export lies beside
    (finding,) = models.check_models(Subject("cpu", tmp_path / "missing"))
    assert finding.level == "red" and "missing is not a folder" in finding.detail
    (finding,) = models.check_answer(Subject("cpu", tmp_path / "missing"))
    assert (finding.name, finding.level) == ("loading", "red")


def test_no_model_at_all_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("PIXEDGE_MODEL", raising=False)
    (finding,) = models.check_models(Subject("cpu"))
    assert finding.level == "yellow" and "pixedge export" in finding.advice
    assert list(models.check_answer(Subject("cpu"))) == []


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def findings(monkeypatch):
    """Let the examination find these."""

    def let(*found):
        monkeypatch.setattr(examination, "examine", lambda *_: iter(found))

    return let


def test_lines_carry_words_and_advice(findings):
    findings(
        Finding("a", "green", "fine"),
        Finding("b", "yellow", "slow", "hurry"),
        Finding("c", "red", "out", "mend it"),
    )
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout == (
        "ok    a: fine\nwarn  b: slow\n      -> hurry\nFAIL  c: out\n      -> mend it\n"
        "1 ok, 1 could be better, 1 failed\n"
    )
    quiet = CliRunner().invoke(main, ["doctor", "--quiet"])
    assert quiet.stdout == "warn  b: slow\n      -> hurry\nFAIL  c: out\n      -> mend it\n"


def test_a_warning_alone_is_no_failure(findings):
    findings(Finding("b", "yellow", "slow", "hurry"))
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "ok": True,
        "green": 0,
        "yellow": 1,
        "red": 0,
        "findings": [{"name": "b", "level": "yellow", "detail": "slow", "advice": "hurry"}],
    }
