"""`pixedge export` on a stand-in for the pipeline: arguments, progress, what it prints and records."""

import json
import sys

import pytest
from click.testing import CliRunner

from pixedge.cli import main
from pixedge.commands import export as export_command
from pixedge.errors import CheckpointError, ExportError
from pixedge.last_export import read_last_export, record_file

pipeline = pytest.importorskip("pixedge_export.pipeline", reason="the export extra is not installed")

DIVERGENCE = {
    "rtn": {
        "text": {"tokens": 9, "kl": 0.21234, "top1": 0.9},
        "image": {"tokens": 9, "kl": 0.3, "top1": 0.8},
    },
    "gptq": {"text": {"tokens": 9, "kl": 0.1, "top1": 0.95}, "image": {"tokens": 9, "kl": 0.2, "top1": 1.0}},
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))
    path = tmp_path / "tiny"
    path.mkdir()
    return path


@pytest.fixture
def run_export(monkeypatch, source):
    calls = []

    def stand_in(source, out, recipe, *, report, **options):
        calls.append((source, out, recipe, options))
        if stand_in.error is not None:
            raise stand_in.error
        report(pipeline.Event("vision", 1, 2, "writing the ONNX graph"))
        report(pipeline.Event("layers", 1, 4, "layer 1"))
        out.mkdir()
        (out / "model.safetensors").write_bytes(bytes(1_500_000))
        (out / "export_report.json").write_text(json.dumps(stand_in.report))
        return out

    stand_in.error, stand_in.report = None, {"divergence_from_16_bits": DIVERGENCE}
    monkeypatch.setattr(pipeline, "export", stand_in)

    def invoke(*arguments):
        return CliRunner().invoke(main, ["export", str(source), *map(str, arguments)])

    invoke.calls, invoke.stand_in = calls, stand_in
    return invoke


def test_it_prints_where_how_large_what_it_cost_and_what_is_next(run_export, tmp_path):
    result = run_export()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{tmp_path / 'tiny-pixedge-4bit'}  (1.5 MB, made in 0 s)"
    assert lines[2:7] == [
        "difference from 16 bits     KL (nats)  same first choice",
        "rtn, text                      0.2123              90.0%",
        "rtn, text after a picture      0.3000              80.0%",
        "gptq, text                     0.1000              95.0%",
        "gptq, text after a picture     0.2000             100.0%",
    ]
    assert lines[-2:] == ["Next:", '  pixedge run --image photo.jpg "What is in this picture?"']
    assert result.stderr.splitlines() == [
        "calibrating on a small built-in mix; pictures and texts like yours do better: --calibration DIR",
        "vision writing the ONNX graph",
        "layers layer 1",
    ]


@pytest.mark.parametrize(
    "report", [{}, [], {"divergence_from_16_bits": 3}, {"divergence_from_16_bits": {"rtn": {"text": {}}}}]
)
def test_a_report_of_another_kind_is_left_out(run_export, report):
    run_export.stand_in.report = report
    result = run_export()
    assert result.exit_code == 0
    assert "KL" not in result.stdout and "Next:" in result.stdout


def test_the_export_is_remembered_for_run(run_export, tmp_path):
    run_export("--out", tmp_path / "new")
    assert read_last_export() == tmp_path / "new"


def test_a_state_folder_that_cannot_be_written_does_not_fail_the_export(run_export, tmp_path):
    record_file().parent.parent.write_text("a file where the folder should be")
    result = run_export()
    assert result.exit_code == 0
    assert "name it with --model" in result.stderr


def test_quiet_prints_the_path_alone(run_export, tmp_path):
    result = run_export("--quiet")
    assert (result.stdout, result.stderr) == (f"{tmp_path / 'tiny-pixedge-4bit'}\n", "")


def test_every_option_arrives(run_export, source, tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    out = tmp_path / "out"
    result = run_export(
        *("--out", out, "--method", "rtn", "--calibration", samples, "--group-size", "64"),
        *("--samples", "9", "--device", "cpu", "--threads", "2", "--force"),
    )
    assert result.exit_code == 0, result.output
    ((found_source, found_out, recipe, options),) = run_export.calls
    assert (found_source, found_out, recipe.method, recipe.group_size) == (source, out, "rtn", 64)
    expected = {"calibration": samples, "samples": 9, "device": "cpu", "threads": 2, "force": True}
    assert options == expected


def test_defaults(run_export):
    run_export()
    _, _, recipe, options = run_export.calls[0]
    assert recipe == type(recipe)()
    expected = {"calibration": None, "samples": None, "device": "auto", "threads": None, "force": False}
    assert options == expected


def test_the_help_names_the_size_of_the_built_in_mix():
    samples = next(option for option in export_command.export.params if option.name == "samples")
    assert f"[{pipeline.DEFAULT_SAMPLES} of the mix" in samples.help


def test_a_source_named_by_a_dot_still_has_a_name(run_export, source, monkeypatch, tmp_path):
    monkeypatch.chdir(source)
    CliRunner().invoke(main, ["export", "."])
    assert run_export.calls[0][1] == tmp_path / "tiny-pixedge-4bit"


def test_a_missing_source_is_a_sentence(tmp_path):
    result = CliRunner().invoke(main, ["export", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.stderr == (
        f"pixedge: {tmp_path / 'none'} is not a folder; give the folder of a checkpoint, or a repository "
        "such as mistralai/Pixtral-12B-2409\n"
    )


def test_a_repository_is_pulled_first(run_export, source, monkeypatch, tmp_path):
    pulled = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        export_command, "pull_with_progress", lambda name, quiet: pulled.append((name, quiet)) or source
    )
    result = CliRunner().invoke(main, ["export", "mistralai/tiny", "--quiet"])
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'tiny-pixedge-4bit'}\n"
    assert pulled == [("mistralai/tiny", True)]
    assert run_export.calls[0][0] == source


@pytest.mark.parametrize("name", ["models/tyni", "nothing", "./owner/name", "a/b/c"])
def test_a_slip_in_a_path_is_no_repository(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(export_command, "pull_with_progress", lambda *_, **__: pytest.fail("it was pulled"))
    result = CliRunner().invoke(main, ["export", name])
    assert result.exit_code == 1 and result.stderr.startswith(f"pixedge: {name} is not a folder; ")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "pixedge_export"])
def test_a_missing_extra_says_what_to_install(run_export, monkeypatch, missing):
    real = export_command.find_spec
    monkeypatch.setattr(export_command, "find_spec", lambda name: None if name == missing else real(name))
    result = run_export()
    assert result.exit_code == 1 and run_export.calls == []
    assert result.stderr == f"pixedge: export needs {missing}; run: pip install 'pixedge[export]'\n"


@pytest.mark.parametrize(
    "error", [CheckpointError("a is 3; make it 4"), ExportError("b exists; choose another")]
)
def test_errors_are_sentences_and_nothing_is_remembered(run_export, error):
    run_export.stand_in.error = error
    result = run_export("--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"pixedge: {error}\n")
    assert read_last_export() is None


def test_ctrl_c_exits_130(run_export):
    run_export.stand_in.error = KeyboardInterrupt()
    result = run_export("--quiet")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr


def test_the_runtime_does_not_import_the_export_stage():
    assert "pixedge_export" not in vars(sys.modules["pixedge.commands.export"])


def test_json_gives_one_object_a_line(run_export, tmp_path):
    result = run_export("--json")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stderr.splitlines()] == [
        {"phase": "vision", "done": 1, "total": 2, "detail": "writing the ONNX graph"},
        {"phase": "layers", "done": 1, "total": 4, "detail": "layer 1"},
    ]
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found.pop("seconds") < 60
    assert found == {
        "folder": str(tmp_path / "tiny-pixedge-4bit"),
        "bytes": 1_500_000 + len(json.dumps({"divergence_from_16_bits": DIVERGENCE})),
        "divergence_from_16_bits": DIVERGENCE,
    }


@pytest.mark.parametrize(("phase", "told"), [("plan", True), ("samples", False)])
def test_a_stopped_export_says_where_its_work_is_kept(run_export, monkeypatch, tmp_path, phase, told):
    left = tmp_path / ".tiny-pixedge-4bit.partial"

    def stopped(source, out, recipe, *, report, **options):
        report(pipeline.Event(phase, 1, 1))
        left.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "export", stopped)
    result = run_export()
    assert result.exit_code == 130
    note = f"what is finished is kept in {left}; the same command goes on from there"
    assert (note in result.stderr.splitlines()) == told
