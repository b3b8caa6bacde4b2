"""The command line around the commands: help, version, errors as sentences, exit codes."""

import dataclasses
import errno
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

import pixedge
from pixedge import errors
from pixedge.cli import main
from pixedge.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "numpy", "onnxruntime", "rich", "PIL", "mistral_common", "safetensors", "onnx"}


def invoke(*args, **options):
    return CliRunner().invoke(main, args, **options)


@pytest.fixture
def failing(monkeypatch):
    """Add a command `fail` that raises what it is given."""

    def add(error):
        def callback():
            raise error

        monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=callback))
        return invoke("fail")

    return add


# --- help and version ---------------------------------------------------------------------------------------


@pytest.mark.slow  # a time says something on an idle machine only
def test_help_answers_within_300_ms():
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pixedge", "--help"], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start

    # the best counts, because other programs may hold the machine; one good run is enough
    assert any(once() < 0.3 for _ in range(20))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["export", "-h"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments):
    code = (
        f"import sys, json; sys.argv = ['pixedge', *{arguments!r}]\n"
        "import pixedge.cli\n"
        "try: pixedge.cli.main()\n"
        "finally: print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout
    loaded = json.loads(done.stderr)
    assert "click" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_importing_the_package_is_light_and_names_are_there():
    code = "import sys, pixedge; assert 'torch' not in sys.modules; print(pixedge.__all__, dir(pixedge))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert pixedge.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        pixedge.lode  # noqa: B018


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"pixedge {pixedge.__version__}\n"


def test_help_names_the_exit_codes():
    text = invoke("--help").stdout
    for code in (0, 1, 2, 130):
        assert re.search(rf"^ +{code} +\w", text, re.MULTILINE), code


def options():
    for command in main.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                yield pytest.param(option, id=f"{command.name} {option.opts[-1]}")


@pytest.mark.parametrize("option", list(options()))
def test_help_of_every_option_is_one_line_with_its_default(option):
    help_text = option.help
    assert "\n" not in help_text and help_text.endswith(".")
    if option.is_flag:
        return
    shown = re.search(r"\[(.+)\]\.$", help_text)
    assert shown, help_text
    if isinstance(option.default, str):
        assert shown[1] == option.default
    elif isinstance(option.default, (int, float)):
        assert float(shown[1]) == option.default


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SamplingParams)])
def test_defaults_of_sampling_are_those_of_the_library(name):
    context = main.commands["run"].make_context(
        "run", ["question"], click.Context(main, **main.context_settings)
    )
    # an answer's format is one option for each kind of it
    for option in {"answer_format": ("schema", "regex", "grammar")}.get(name, (name,)):
        assert context.params[option] == getattr(SamplingParams(), name)


def test_commands_page_is_what_the_commands_print():
    file = ROOT / "docs" / "make_commands.py"
    spec = importlib.util.spec_from_file_location("make_commands", file)
    make_commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_commands)
    page = make_commands.commands_page()
    assert page == make_commands.FILE.read_text(encoding="utf-8"), "run: python docs/make_commands.py"
    # at this width no option's help is broken over two lines
    option_lines = re.findall(r"^  (?:--|-h).*$", page, re.MULTILINE)
    n_helps = 1 + len(main.commands)
    assert len(option_lines) == len(list(options())) + len(["--version"]) + n_helps
    assert all(line.rstrip().endswith(".") for line in option_lines)


# --- errors -------------------------------------------------------------------------------------------------


def subclasses(cls):
    return [cls, *(found for child in cls.__subclasses__() for found in subclasses(child))]


@pytest.mark.parametrize(
    "kind", [kind for kind in subclasses(errors.PixedgeError) if kind.__module__ == "pixedge.errors"]
)
def test_own_errors_are_one_sentence_and_their_exit_code(failing, kind):
    result = failing(kind("the thing is 3; make it 4"))
    assert result.exit_code == kind.exit_code
    assert result.stderr == "pixedge: the thing is 3; make it 4\n"
    assert result.stdout == ""


def test_an_error_of_several_lines_is_joined(failing):
    assert failing(errors.ImageError("a\n  b")).stderr == "pixedge: a b\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--imge", "x", "q"], r"pixedge: .*--imge.*; see 'pixedge run --help'"),
        (
            ["run", "--threads", "0", "q"],
            r"pixedge: .*0 is too small; give 1 or more; see 'pixedge run --help'",
        ),
        (
            ["run", "--threads", "two", "q"],
            r"pixedge: .*'two' is not a valid integer; see 'pixedge run --help'",
        ),
        (["run", "--device", "gpu", "q"], r"pixedge: .*'gpu' is not a device; .* see 'pixedge run --help'"),
        (["run", "--device", "cuda:x", "q"], r"pixedge: .*'cuda:x' is not a device; .*"),
        (["run", "--dtype", "int8", "q"], r"pixedge: .*'int8' is not one of .*"),
        (["run", "one", "two"], r"pixedge: .*'two'; put quotes around all of it"),
        (["export"], r"pixedge: Missing argument 'SOURCE'; see 'pixedge export --help'"),
        (["export", "x", "--method", "awq"], r"pixedge: .*'awq' is not one of .*"),
        (["verify"], r"pixedge: Missing argument 'DIR'; see 'pixedge verify --help'"),
        (["answer"], r"pixedge: No such command 'answer'.*; see 'pixedge --help'"),
        (["--verbose"], r"pixedge: No such option.*--verbose.*; see 'pixedge --help'"),
    ],
)
def test_wrong_usage_is_one_line_with_a_hint_and_exits_2(arguments, expected):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(expected + "\n", result.stderr), result.stderr


def test_no_command_shows_the_help_and_exits_2():
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: pixedge" in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "the memory is full"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "the memory is full",
        ),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), "the GPU's memory is full"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            "the disk is full while writing /data/x",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            "/root/x cannot be used (Permission denied)",
        ),
    ],
)
def test_a_machine_that_ran_out_is_a_sentence(failing, error, expected):
    result = failing(error)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"pixedge: {expected}")
    assert result.stderr.count("\n") == 1


def test_a_fault_of_pixedge_keeps_its_traceback(failing):
    result = failing(ZeroDivisionError("oh"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_exits_130_without_a_traceback(failing):
    result = failing(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stdout == "" and result.stderr.strip() == ""


def test_a_closed_pipe_is_quiet():
    # more than a pipe holds, so that writing fails while the command runs
    code = (
        "import click, pixedge.cli as cli\n"
        "callback = lambda: [click.echo('x' * 1000) for _ in range(500)]\n"
        "cli.main.add_command(click.Command('much', callback=callback))\n"
        "cli.main(['much'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 0
    process.stderr.close()
