"""Progress and figures for people."""

import doctest
import io
import sys

import pytest

from pixedge import terminal
from pixedge.terminal import note, progress, size


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tty(monkeypatch):
    """Put a terminal in the place of standard error; a function, as pytest sets stderr after fixtures."""

    def install():
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return install


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_docstrings():
    assert doctest.testmod(terminal).failed == 0


def test_a_file_gets_a_line_for_each_phase_and_one_each_ten_seconds(capsys):
    clock = Clock()
    with progress(keep=True, clock=clock) as report:
        for done in range(100):
            clock.now = done * 0.5
            report("layers", done, 100, f"layer {done}")
        report("hash", 0, 0)
        report("hash", 5, 0)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "layers layer 0"
    left = {20: 40, 40: 30, 60: 20, 80: 10}
    assert lines[1:-1] == [f"layers {done}% layer {done} ({left[done]} s left)" for done in left]
    assert lines[-1] == "hash"


def test_what_an_earlier_run_did_tells_nothing_of_the_time_that_is_left(capsys):
    clock = Clock()
    with progress(keep=True, clock=clock) as report:
        report("layers", 50, 100)
        clock.now = 60
        report("layers", 60, 100)
    assert capsys.readouterr().err.splitlines() == ["layers", "layers 60% (4 min left)"]


def test_a_file_does_not_see_a_quick_load(capsys):
    clock = Clock()
    with progress(clock=clock) as report:
        report("weights", 1, 4)
        clock.now = 9.9
        report("weights", 2, 4)
        assert capsys.readouterr().err == ""
        clock.now = 10.0
        report("weights", 3, 4)
    assert capsys.readouterr().err == "weights 75% (5 s left)\n"


@pytest.mark.parametrize("keep", [True, False])
def test_quiet_is_silent(capsys, tty, keep):
    stream = tty()
    with progress(quiet=True, keep=keep) as report:
        report("weights", 1, 2, "detail")
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_bars_that_stay(tty, capsys):
    stream = tty()
    with progress(keep=True) as report:
        report("vision [1]", 0, 2, "writing [bold]")
        report("vision [1]", 2, 2)
        report("layers", 1, 4, "layer 1")
        report("layers", 4, 4)
    text = stream.getvalue()
    assert "vision [1]" in text and "100%" in text
    assert capsys.readouterr().out == ""


def test_bars_of_a_load_are_wiped_and_the_cursor_comes_back(tty):
    stream = tty()
    with pytest.raises(KeyboardInterrupt), progress() as report:
        report("weights", 1, 2)
        raise KeyboardInterrupt
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")
    assert "\x1b[2K" in stream.getvalue()


def test_notes_go_to_stderr_and_are_plain_in_a_file(capsys):
    note("12 tokens")
    assert capsys.readouterr() == ("", "12 tokens\n")


def test_notes_are_dim_in_a_terminal(tty):
    stream = tty()
    note("12 tokens")
    assert stream.getvalue() == "\x1b[2m12 tokens\x1b[0m\n"


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_400, "99.4 kB"),
        (99_600, "100 kB"),
        (999_600, "1.0 MB"),
        (25_000_000_000, "25.0 GB"),
        (4e15, "4000 TB"),
    ],
)
def test_size(n_bytes, expected):
    assert size(n_bytes) == expected
