"""The documents do not lie: commands and examples run, links lead somewhere, no figure is missing."""

import doctest
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "demo"))

import pixedge
import pixedge.model
from pixedge.cli import main
from tests.exported_demo import PICTURES, ROOT, environment, exported_demo
from turns import Turn, is_right

README = ROOT / "README.md"
CARD = ROOT / "models" / "demo" / "README.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), CARD]
DEMO_EXPORT = "models/demo-pixedge-4bit"
ANSWERS = {
    (tuple(entry["pictures"]), entry["turns"][0]["question"]): Turn(**entry["turns"][0])
    for entry in json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
}


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)


def commands(document):
    return [line for block in blocks(document, "sh") for line in block.splitlines() if line.strip()]


COMMANDS = [(document, line) for document in DOCUMENTS for line in commands(document)]
README_RUNS = [line for line in commands(README) if re.match(r"pixedge (run|verify)\b.*models/demo", line)]


def names(value):
    return value.name if isinstance(value, Path) else value


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return exported_demo(tmp_path_factory.getbasetemp())


@pytest.fixture
def ask(folder, monkeypatch):
    """Run a pixedge command of the README in its own words, on the export that the tests made."""
    monkeypatch.chdir(ROOT)
    for name, value in environment(folder.parent).items():
        monkeypatch.setenv(name, value)

    def invoke(arguments):
        arguments = [str(folder) if argument == DEMO_EXPORT else argument for argument in arguments]
        return CliRunner().invoke(main, arguments)

    return invoke


def dry_run(line):
    """Give the commands that a make line would run."""
    # A make that runs these tests passes its own flags and variables on.
    passed_on = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    clean = {name: value for name, value in os.environ.items() if name not in passed_on}
    program, *arguments = shlex.split(line)
    done = subprocess.run([program, "-n", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_parses(arguments):
    """Let click read a pixedge command line, without running it."""
    group = click.Context(main, info_name="pixedge")
    command = main.get_command(group, arguments[0])
    assert command is not None, arguments
    command.make_context(arguments[0], list(arguments[1:]), parent=group)


def test_the_documents_have_commands():
    assert {"make run", "make test"} <= set(commands(README))
    assert any(line.startswith("make export MODEL=") for line in commands(README))
    assert len(README_RUNS) >= 4 and len(COMMANDS) > 10


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=names)
def test_a_command_is_one_that_exists(document, line):
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        for step in dry_run(line):
            words = shlex.split(step)
            if words and words[0].endswith("/pixedge"):
                check_parses(words[1:])
    elif program == "pixedge":
        check_parses(arguments)
    elif program == "python" and arguments[0] == "-m":
        module = ROOT / "export" / (arguments[1].replace(".", "/") + ".py")
        check_script(module, arguments[2:])
    elif program == "python":
        check_script(ROOT / arguments[0], arguments[1:])
    else:
        assert line == ". .venv/bin/activate", f"{document.name}: no test knows how to check {line!r}"


def check_script(script, arguments):
    source = script.read_text(encoding="utf-8")
    for argument in arguments:
        if argument.startswith("--"):
            assert f'"{argument}"' in source, f"{script} has no {argument}"


def test_make_run_prints_what_the_readme_shows(ask):
    (line,) = (step for step in dry_run("make run") if re.match(r"\S*/pixedge run ", step))
    result = ask(shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    shown = blocks(README, "text")[0].splitlines()
    assert result.stdout.strip() in [text.strip() for text in shown], result.stdout


@pytest.mark.parametrize("line", README_RUNS)
def test_a_demo_command_of_the_readme_runs_and_is_right(ask, line):
    _, *arguments = shlex.split(line)
    result = ask(arguments)
    assert result.exit_code == 0, result.output
    if arguments[0] == "verify":
        assert [text.split()[0] for text in result.stdout.splitlines()] == ["ok"] * 3
        return
    pictures = tuple(Path(b).name for a, b in itertools.pairwise(arguments) if a == "--image")
    turn = ANSWERS[pictures, arguments[-1]]
    text = json.loads(result.stdout)["text"] if "--json" in arguments else result.stdout.strip()
    assert is_right(turn, text), text


def run_examples(examples, name, values):
    parser = doctest.DocTestParser()
    test = parser.get_doctest(examples, values, name, name, 0)
    assert test.examples, name
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_the_readme_s_python_runs(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    examples = "\n".join(blocks(README, "python")).replace(DEMO_EXPORT, folder.as_posix())
    run_examples(examples, "README.md", {})


@pytest.mark.parametrize("module", [pixedge, pixedge.model], ids=lambda module: module.__name__)
def test_the_docstring_examples_run(folder, monkeypatch, module):
    monkeypatch.chdir(ROOT)
    values = {"folder": folder, "picture": PICTURES / "shapes.png"}
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert tests
    for test in tests:
        said = []
        test.globs.update(values)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=said.append)
        assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if not re.match(r"https?://", target):
            assert (document.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_no_figure_is_missing(document):
    assert re.findall(r"@@\w+@@", document.read_text(encoding="utf-8")) == []


def test_every_document_is_reached_from_the_readme():
    text = README.read_text(encoding="utf-8")
    for document in DOCUMENTS[1:]:
        assert f"({document.relative_to(ROOT).as_posix()})" in text, document


def test_the_changelog_speaks_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_table_of_speed_is_that_of_the_figures():
    command = [sys.executable, str(ROOT / "docs" / "make_speed.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
