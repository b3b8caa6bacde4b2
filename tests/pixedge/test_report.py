"""`pixedge report`: what it prints, which folder it takes, and that a damaged report is one sentence."""

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pixedge.artifact import REPORT, REPORT_PAGE
from pixedge.commands import report as report_module
from pixedge.commands.report import report
from pixedge.errors import ArtifactError, PixedgeError, UsageError
from pixedge.last_export import write_last_export

ROOT = Path(__file__).parents[2]

DATA = {
    "source": {"name": "tiny", "layout": "mistral", "sha256": "0" * 64},
    "recipe": {"method": "gptq", "group_size": 128},
    "calibration": {"samples": 3},
    "divergence_from_16_bits": {
        "rtn": {
            "text": {"tokens": 1069, "kl": 0.25, "top1": 0.875},
            "image": {"tokens": 2058, "kl": 0.5, "top1": 0.75},
        },
        "gptq": {
            "text": {"tokens": 1069, "kl": 0.0625, "top1": 1.0},
            "image": {"tokens": 2058, "kl": 0.1, "top1": 0.9},
        },
    },
    "linear_errors": [
        {"layer": layer, "linear": linear, "rtn": 0.5, "quantized": quantized}
        for layer, linear, quantized in [
            (0, "mlp.up_proj", 0.01),
            (0, "mlp.down_proj", 0.07),
            (1, "mlp.up_proj", 0.02),
            (1, "mlp.down_proj", 0.04),
            (10, "mlp.up_proj", 0.06),
            (10, "mlp.down_proj", 0.05),
        ]
    ],
    "vision_parity": [],
    "bytes": {"quantized_weights": 7_500_000_000, "output_head": 2_500_000_000},
    "seconds": {"vision": 1.25, "layers": 4321.5},
    "machine": {"cpu": "Some CPU"},
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was exported, and no folder is named in the environment."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))
    monkeypatch.delenv("PIXEDGE_MODEL", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny-pixedge-4bit", DATA)


def write(folder: Path, data: object) -> Path:
    folder.mkdir()
    (folder / REPORT).write_text(json.dumps(data), encoding="utf-8")
    (folder / REPORT_PAGE).write_text("<!DOCTYPE html>", encoding="utf-8")
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(report, list(map(str, arguments)))


def refusal(*arguments: object) -> PixedgeError:
    result = invoke(*arguments)
    assert isinstance(result.exception, PixedgeError), result.exception
    assert result.stdout == "" and "\n" not in str(result.exception)
    return result.exception


def test_it_tells_what_it_cost(folder: Path) -> None:
    result = invoke(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{folder}  (tiny, gptq, 10.0 GB)",
        "",
        "difference from 16 bits     KL (nats)  same first choice",
        "rtn, text                      0.2500              87.5%",
        "rtn, text after a picture      0.5000              75.0%",
        "gptq, text                     0.0625             100.0%",
        "gptq, text after a picture     0.1000              90.0%",
        "",
        "largest errors             rtn    gptq",
        "layer 0 mlp.down_proj   0.5000  0.0700",
        "layer 10 mlp.up_proj    0.5000  0.0600",
        "layer 10 mlp.down_proj  0.5000  0.0500",
        "layer 1 mlp.down_proj   0.5000  0.0400",
        "layer 1 mlp.up_proj     0.5000  0.0200",
        "",
        "part of the folder    size  share",
        "quantized weights   7.5 GB  75.0%",
        "output head         2.5 GB  25.0%",
        "",
        "phase   seconds",
        "vision      1.2",
        "layers   4321.5",
        "all      4322.8",
        "",
        f"page: {folder / REPORT_PAGE}",
    ]


def test_json_is_one_object(folder: Path) -> None:
    result = invoke("--json", folder)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1
    found = json.loads(result.stdout)
    errors = sorted(DATA["linear_errors"], key=lambda row: -row["quantized"])
    assert found == {
        "folder": str(folder),
        "page": str(folder / REPORT_PAGE),
        "name": "tiny",
        "method": "gptq",
        "divergence": DATA["divergence_from_16_bits"],
        "worst_linears": errors[:5],
        "bytes": DATA["bytes"],
        "seconds": DATA["seconds"],
    }


def test_rounding_alone_is_one_column(tmp_path: Path) -> None:
    data = copy.deepcopy(DATA)
    data["recipe"]["method"] = "rtn"
    del data["divergence_from_16_bits"]["gptq"], data["divergence_from_16_bits"]["rtn"]["image"]
    lines = invoke(write(tmp_path / "out", data)).stdout.splitlines()
    assert lines[2:4] == [
        "difference from 16 bits  KL (nats)  same first choice",
        "rtn, text                   0.2500              87.5%",
    ]
    assert lines[5:7] == ["largest errors             rtn", "layer 0 mlp.down_proj   0.5000"]


def test_an_older_report_and_no_page(tmp_path: Path) -> None:
    """pixedge 0.1.0 counted no bytes and wrote no page."""
    data = {key: value for key, value in DATA.items() if key not in ("bytes", "machine")}
    folder = write(tmp_path / "out", data)
    (folder / REPORT_PAGE).unlink()
    lines = invoke(folder).stdout.splitlines()
    assert lines[0] == f"{folder}  (tiny, gptq)" and lines[-1] == "all      4322.8"
    assert not any("page" in line or "part" in line for line in lines)
    assert json.loads(invoke(folder, "--json").stdout)["page"] is None


def test_nothing_measured(tmp_path: Path) -> None:
    data = DATA | {"linear_errors": [], "divergence_from_16_bits": {}, "bytes": {}, "seconds": {}}
    folder = write(tmp_path / "out", data)
    assert invoke(folder).stdout.splitlines() == [
        f"{folder}  (tiny, gptq)",
        "",
        f"page: {folder / REPORT_PAGE}",
    ]


def test_without_dir_it_takes_the_folder_that_run_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refusal()
    assert isinstance(error, UsageError) and str(error) == (
        "no model was exported yet; run 'pixedge export CHECKPOINT' once, or give DIR"
    )
    write_last_export(folder)
    assert invoke().stdout.startswith(f"{folder.resolve()}  (tiny")
    other = write(tmp_path / "other", DATA | {"source": {"name": "other"}})
    monkeypatch.setenv("PIXEDGE_MODEL", str(other))
    assert invoke().stdout.startswith(f"{other}  (other")
    assert invoke(folder).stdout.startswith(f"{folder}  (tiny")
    monkeypatch.setenv("PIXEDGE_MODEL", str(tmp_path / "none"))
    assert str(refusal()) == (
        f"{tmp_path / 'none'} ($PIXEDGE_MODEL) is not a folder; give one that pixedge export made"
    )
    monkeypatch.setenv("PIXEDGE_MODEL", "")
    write_last_export(tmp_path / "gone")
    assert "gone (the last export) is not a folder" in str(refusal())


def test_no_folder_and_no_report(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none")
    assert isinstance(error, ArtifactError)
    assert str(error) == f"{tmp_path / 'none'} is not a folder; give one that pixedge export made"
    sentence = (
        f"{tmp_path} has no export_report.json; give a folder that pixedge export made "
        "(import measures nothing)"
    )
    assert str(refusal(tmp_path)) == sentence
    (tmp_path / REPORT).mkdir()
    assert str(refusal(tmp_path)) == sentence


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / REPORT)
    assert "has no export_report.json" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("source"),
        lambda data: data.pop("recipe"),
        lambda data: data.pop("linear_errors"),
        lambda data: data.pop("divergence_from_16_bits"),
        lambda data: data.pop("seconds"),
        lambda data: data.update(source=[]),
        lambda data: data["source"].update(name=3),
        lambda data: data["recipe"].update(method=None),
        lambda data: data.update(linear_errors=7),
        lambda data: data.update(linear_errors={"a": 1}),
        lambda data: data["linear_errors"].append({"layer": 0}),
        lambda data: data["linear_errors"][0].update(layer=-1),
        lambda data: data["linear_errors"][0].update(layer=True),
        lambda data: data["linear_errors"][0].update(quantized=math.nan),
        lambda data: data["linear_errors"][0].update(rtn="0.5"),
        lambda data: data["linear_errors"][0].update(rtn=10**400),
        lambda data: data.update(divergence_from_16_bits=[1]),
        lambda data: data["divergence_from_16_bits"].update(rtn=3),
        lambda data: data["divergence_from_16_bits"]["rtn"].update(text={}),
        lambda data: data["divergence_from_16_bits"]["rtn"]["text"].update(kl=math.inf),
        lambda data: data.update(bytes=3),
        lambda data: data["bytes"].update(scales=1.5),
        lambda data: data["bytes"].update(scales=-1),
        lambda data: data["bytes"].update(scales=10**30),
        lambda data: data.update(seconds=None),
        lambda data: data["seconds"].update(layers=[]),
    ],
)
def test_a_damaged_report(tmp_path: Path, change: Callable[[dict], None]) -> None:
    data = copy.deepcopy(DATA)
    change(data)
    folder = write(tmp_path / "out", data)
    for arguments in ([folder], [folder, "--json"]):
        message = str(refusal(*arguments))
        assert message.startswith(f"{folder / REPORT} is damaged (") and message.endswith("); export again")
        assert len(message) < len(str(folder / REPORT)) + 120


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"[" * 200_000, b'{"source": ' + b"9" * 5000]
)
def test_a_report_that_is_no_json_object(folder: Path, content: bytes) -> None:
    (folder / REPORT).write_bytes(content)
    assert str(refusal(folder)).startswith(f"{folder / REPORT} is damaged (")


def test_a_report_of_any_size_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "_MOST_BYTES", 100)
    assert "bytes')" in str(refusal(folder))


def test_a_report_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert str(refusal(folder)) == (
        f"{folder / REPORT} cannot be read (Permission denied); check its permissions"
    )


def test_a_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    """A folder may come from a stranger: ESC and its like must not reach the terminal, line ends neither."""
    bad = "\x1b[2Ja\nb\x9bc\x07"
    data = copy.deepcopy(DATA)
    data["source"]["name"] = data["recipe"]["method"] = bad
    data["divergence_from_16_bits"] = {bad: {bad: {"tokens": 1, "kl": 0.0, "top1": 1.0}}}
    data["linear_errors"] = [{"layer": 0, "linear": bad, "rtn": 0.0, "quantized": 0.0}]
    data["bytes"], data["seconds"] = {bad: 1}, {bad: 1.0}
    out = invoke(write(tmp_path / "out", data)).stdout
    assert not set("\x1b\x9b\x07") & set(out)
    assert out.count(r"\x1b[2Ja\nb\x9bc\x07") == 8
    data["linear_errors"][0]["layer"] = bad
    refused = str(refusal(write(tmp_path / "refused", data)))
    assert not set("\x1b\x9b\x07\n") & set(refused)


def test_it_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys\n"
        "from pixedge.commands.report import report\n"
        "report(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'rich', 'PIL', 'mistral_common', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(str(folder))
    assert (report_module._REPORT, report_module._PAGE) == (REPORT, REPORT_PAGE)
