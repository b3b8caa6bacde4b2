"""Standard streams that are closed, full, broken or dumb, in processes of their own."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.exported_demo import PICTURES, ROOT, environment, exported_demo
from tests.serving import wait_for

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the devices are Linux's")

SHAPES = PICTURES / "shapes.png"
ASKED = ["--image", SHAPES, "What colour is the star?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return exported_demo(tmp_path_factory.getbasetemp())


def shell(folder: Path, *arguments: object, redirect: str = "", **variables: str):
    """Run a command in a shell, which redirects its streams."""
    command = shlex.join([sys.executable, "-m", "pixedge", *map(str, arguments)])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {redirect}"],
        cwd=ROOT,
        env=environment(folder.parent) | variables,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
    )


def commands(folder: Path) -> list[list[object]]:
    return [
        ["--help"],
        ["run", "--help"],
        ["--version"],
        ["count", "--model", folder, *ASKED],
        ["count", "--model", folder, "--json", "x"],
        ["plan", folder],
        ["report", folder],
        ["report", folder, "--json"],
        ["verify", folder],
        ["doctor", "--quick"],
        ["run", "--model", folder, *ASKED],
        ["run", "--model", folder, "--json", *ASKED],
    ]


def some(folder: Path) -> list[list[object]]:
    return [commands(folder)[at] for at in (0, 4, 6, 10)]


COMMANDS = pytest.mark.parametrize("commands", [some, pytest.param(commands, marks=pytest.mark.slow)])


# What a closed stream loses is that stream's text, and nothing else


def test_an_answer_comes_with_standard_error_closed_or_full(folder):
    for redirect in ("2>&-", "2>/dev/full", "2</dev/null <&-"):
        done = shell(folder, "run", "--model", folder, *ASKED, redirect=redirect)
        assert (done.stdout, done.returncode) == ("The star is yellow.\n", 0), redirect


@COMMANDS
def test_every_command_ends_cleanly_with_standard_output_closed(folder, commands):
    """Python has no sys.stdout then, and the next file to be opened would get the number 1."""
    for arguments in commands(folder):
        done = shell(folder, *arguments, redirect=">&-")
        assert "Traceback" not in done.stderr, arguments
        assert done.returncode == 0, (arguments, done.stderr)


def test_a_batch_with_all_streams_closed_writes_answers_and_nothing_else_to_its_file(folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    done = shell(
        folder, "batch", SHAPES, "--prompt", "x", "--model", folder, "--out", out, redirect="<&- >&- 2>&-"
    )
    assert done.returncode == 0
    assert out.read_text().startswith('{"id": "batch_req_') and out.read_text().count("\n") == 1


@COMMANDS
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("redirect", [">/dev/full", "1</dev/null"])
def test_output_that_cannot_be_written_is_told_in_a_sentence(folder, commands, redirect, unbuffered):
    """The advice was to choose another --out, which most commands do not have."""
    for arguments in commands(folder):
        done = shell(folder, *arguments, redirect=redirect, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 1, arguments
        assert "Traceback" not in done.stderr and "--out" not in done.stderr, done.stderr
        last = done.stderr.splitlines()[-1]
        if "--help" not in arguments or not unbuffered:
            assert last.startswith("pixedge: standard output cannot be written ("), arguments


@COMMANDS
def test_both_streams_full(folder, commands):
    for arguments in commands(folder):
        assert shell(folder, *arguments, redirect=">/dev/full 2>/dev/full").returncode == 1


@COMMANDS
def test_a_reader_that_leaves_is_no_error(folder, commands):
    for arguments in commands(folder):
        done = shell(folder, *arguments, redirect="| head -c 1")
        assert (len(done.stdout), done.returncode) == (1, 0), (arguments, done.stderr)
        assert "rror" not in done.stderr, arguments


def healthy(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_server_whose_log_is_full_starts_serves_and_ends(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "pixedge", "serve", "--model", folder, "--port", str(port)],
            cwd=ROOT,
            env=environment(folder.parent),
            stderr=full,
        )
    try:
        wait_for(lambda: healthy(f"http://127.0.0.1:{port}/health"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_chat_ends_where_its_answers_cannot_be_written(folder):
    command = "printf 'hi\\nhi\\nhi\\n'"
    done = subprocess.run(
        ["bash", "-c", f"{command} | {sys.executable} -m pixedge chat --model {folder} >/dev/full"],
        cwd=ROOT,
        env=environment(folder.parent),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.count("standard output cannot be written") == 1


def test_standard_input_that_cannot_be_read(folder):
    for arguments in (["run"], ["run", "--image", "-", "x"], ["chat"], ["count"]):
        for redirect in ("<&-", "0>/dev/null") if arguments == ["chat"] else ("0>/dev/null",):
            done = shell(folder, *arguments, "--model", folder, redirect=redirect)
            assert done.returncode in (1, 2), (arguments, redirect)
            assert "Traceback" not in done.stderr, done.stderr
            assert done.stderr.splitlines()[-1].startswith("pixedge: "), done.stderr


# Terminals


def in_terminal(folder: Path, *arguments: object, typed: bytes = b"", **variables: str) -> bytes:
    """Run a command in a pseudo-terminal; give all that the terminal got."""
    import pty

    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pixedge", *map(str, arguments)],
        cwd=ROOT,
        env=environment(folder.parent) | {"TERM": "xterm", "NO_COLOR": ""} | variables,
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    ) as process:
        os.close(child)
        os.write(parent, typed)
        got = b""
        try:
            while data := os.read(parent, 10_000):
                got += data
        except OSError:  # EIO: nobody is at the other end any more
            pass
        process.wait(60)
    os.close(parent)
    assert process.returncode in (0, 1, 2)
    return got


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str)
def test_a_terminal_without_escape_codes_gets_plain_text(folder, variables):
    """TERM=dumb is Emacs's shell, a serial line or a log of CI."""
    for arguments in (
        ["run", "--model", folder, *ASKED],
        ["doctor", "--quick"],
        ["verify", folder],
        ["plan", folder],
    ):
        got = in_terminal(folder, *arguments, **variables)
        assert got and b"\x1b" not in got, (arguments, got)
    assert b"\x1b[" in in_terminal(folder, "doctor", "--quick")  # or the test would see nothing


def test_a_chat_in_a_dumb_terminal(folder):
    typed = f"What colour is the star in\\\n {SHAPES}?\n/quit\n".encode()
    got = in_terminal(folder, "chat", "--model", folder, typed=typed, TERM="dumb")
    assert b"\x1b" not in got
    assert b"The star is yellow." in got and b"> " in got


# Control characters


EVIL = "a\x1b]0;owned\x07\x9b31m\u202egnp.exe"


def test_names_do_not_command_a_terminal(folder, tmp_path):
    """File names, folder names, options and what stands in a stranger's files: all of them are shown."""

    evil = tmp_path / EVIL
    evil.mkdir()
    picture = evil / f"{EVIL}.png"
    shutil.copy(SHAPES, picture)
    (evil / "x.json").write_text('{"\\u001b[31m": 1}')
    damaged = tmp_path / f"{EVIL} model"
    shutil.copytree(folder, damaged)
    (damaged / f"more {EVIL}").write_text("")
    (damaged / "pixedge.json").write_text(
        (folder / "pixedge.json").read_text().replace('"tekken.json"', '"tek\\u001b[31mken.json"')
    )
    for arguments in (
        ["count", "--model", folder, "--image", picture, "x"],
        ["count", "--model", folder, "--image", f"{picture}x", "x"],
        ["run", "--model", folder, "--image", f"{evil}/*.jpg", "x"],
        ["run", "--model", evil, "x"],
        ["run", "--model", folder, "--schema", evil / "x.json", "x"],
        ["run", "--model", folder, f"--{EVIL}"],
        ["run", EVIL],
        [EVIL],
        ["verify", damaged],
        ["verify", evil],
        ["report", damaged],
        ["plan", damaged],
        ["batch", evil, "--prompt", "x", "--out", tmp_path / "o.jsonl", "--model", evil],
        ["chat", "--model", folder, "--image", picture, "--load", evil / "x.json"],
        ["serve", "--model", evil],
    ):
        got = in_terminal(folder, *arguments, TERM="dumb", PIXEDGE_MODEL=str(evil)).decode()
        assert got and not set("\x1b\x07\x9b\u202e") & set(got), (arguments, got)
