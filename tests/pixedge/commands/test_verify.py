"""`pixedge verify` on stand-ins for the checks."""

import json

import pytest
from click.testing import CliRunner

from pixedge import verify as verify_module
from pixedge.cli import main
from pixedge.errors import ArtifactError
from pixedge.verify import Check

GOOD = [Check("files", True, "12 files"), Check("known picture", True, "drift 0.01")]
BAD = [Check("files", True, "12 files"), Check("known picture", False, "drift 3.2")]


@pytest.fixture
def verify(monkeypatch, tmp_path):
    calls = []

    def invoke(result, *arguments):
        def verify_artifact(folder, progress, **options):
            calls.append((folder, options))
            progress("hash", 1, 2)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(verify_module, "verify_artifact", verify_artifact)
        return CliRunner().invoke(main, ["verify", str(tmp_path), *arguments])

    invoke.calls = calls
    return invoke


def test_each_check_is_a_line(verify, tmp_path):
    result = verify(GOOD, "--device", "cpu", "--threads", "2")
    assert result.exit_code == 0
    assert result.stdout == "ok      files          12 files\nok      known picture  drift 0.01\n"
    assert result.stderr == ""
    assert verify.calls == [(tmp_path, {"device": "cpu", "threads": 2})]


def test_a_failed_check_exits_with_1(verify):
    result = verify(BAD)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1] == "failed  known picture  drift 3.2"


@pytest.mark.parametrize(("checks", "ok"), [(GOOD, True), (BAD, False)])
def test_json(verify, tmp_path, checks, ok):
    result = verify(checks, "--json")
    assert result.exit_code == (0 if ok else 1)
    record = json.loads(result.stdout)
    assert (record["folder"], record["ok"]) == (str(tmp_path), ok)
    assert record["checks"][1] == {"name": "known picture", "ok": ok, "detail": checks[1].detail}


def test_no_artifact_is_a_sentence(verify):
    result = verify(ArtifactError("x has no pixedge.json; export again"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "pixedge: x has no pixedge.json; export again\n"


def test_a_missing_folder_is_a_sentence(tmp_path):
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "none is not a folder" in result.stderr
