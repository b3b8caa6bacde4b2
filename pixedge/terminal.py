"""All that goes to standard output and standard error: answers, results, notes, progress, errors.

Every text passes through ``printable`` on its way to a terminal. Styles and progress bars are for terminals
that take escape codes; with TERM=dumb or NO_COLOR, and in files, everything is plain text.
"""

import contextlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TextIO

import click

from pixedge.errors import OutputError

# A file gets a line of progress at most this often, in seconds; a terminal without escape codes more often.
_FILE_INTERVAL = 10.0
_TERMINAL_INTERVAL = 2.0

# C0 and C1 controls, which a terminal obeys, but not tab and line feed; line separators and the controls of
# writing direction, with which a name can be made to look like another; bytes that are not UTF-8.
_CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Write control characters as escapes, so that a terminal shows them and does not obey them.

    >>> print(printable("\x1b[31mred\nline"))
    \x1b[31mred
    line
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Write control characters as escapes, line feeds too: a name is to stay in its line."""
    return printable(text.replace("\n", "\\n"))


def is_dumb() -> bool:
    """Whether the terminal, if there is one, takes no escape codes."""
    return os.name != "nt" and os.environ.get("TERM", "") in ("", "dumb", "unknown")


def takes_styles(stream: TextIO) -> bool:
    """Whether a stream is a terminal that takes escape codes, and the user wants styles (no-color.org)."""
    return stream.isatty() and not is_dumb() and not os.environ.get("NO_COLOR")


class Report(Protocol):
    """Takes a step: done of total (0 where the total is not known) within a named phase."""

    def __call__(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Show the step."""


@contextlib.contextmanager
def progress(
    *, quiet: bool = False, keep: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Report]:
    """Show progress on standard error; the function given takes every step.

    quiet shows nothing. keep leaves finished bars in place and, in a file, names each phase as it begins;
    without it a file sees only phases that take longer than ten seconds.
    """
    if quiet:
        yield lambda phase, done, total, detail="": None
    elif takes_styles(sys.stderr):
        with _bars(keep) as report:
            yield report
    else:
        yield _lines(keep, clock, _TERMINAL_INTERVAL if sys.stderr.isatty() else _FILE_INTERVAL)


@contextlib.contextmanager
def _bars(keep: bool) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    # markup=False: a file's name may look like rich's markup
    display = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=Console(stderr=True),
        transient=not keep,
        # rich would send lines for standard output to standard error, even where they go to a file
        redirect_stdout=sys.stdout.isatty(),
        # A layer of a large model takes minutes: the speed is taken from the last ten.
        speed_estimate_period=600.0,
    )
    tasks: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int, detail: str = "") -> None:
        phase, detail = one_line(phase), one_line(detail)
        if phase not in tasks:
            for task in display.tasks:
                display.update(task.id, detail="")
                display.stop_task(task.id)
            tasks[phase] = display.add_task(phase, total=total or None, detail=detail)
        display.update(tasks[phase], completed=done, total=total or None, detail=detail)

    with display:
        yield report


def _lines(keep: bool, clock: Callable[[], float], interval: float) -> Report:
    current = ""
    shown = start = clock()
    already = 0

    def report(phase: str, done: int, total: int, detail: str = "") -> None:
        nonlocal current, shown, start, already
        begins = phase != current
        current = phase
        now = clock()
        if begins:
            # what was done before, by a run that was stopped, tells nothing of this one's speed
            shown, start, already = now, now, done
        if not (begins and keep) and now - shown < interval:
            return
        shown = now
        share = f" {done / total:.0%}" if total and not begins else ""
        left = ""
        if already < done < total:
            left = f" ({duration((total - done) * (now - start) / (done - already))} left)"
        _tell(f"{phase}{share}{f' {detail}' if detail else ''}{left}")

    return report


def say(text: str) -> None:
    """Write a piece of an answer to standard output at once, unchanged unless it is a terminal."""
    # Not click.echo, which takes what looks like a colour out of the text.
    put(printable(text) if sys.stdout.isatty() else text)


def show(text: str, mark: str = "", **styles: Any) -> None:
    """Write lines of a result for people to standard output; mark, in a style, stands before the first."""
    put(f"{_style(mark, sys.stdout, styles)}{printable(text)}\n")


def put(text: str) -> None:
    """Write text to standard output at once, escape codes included; OutputError where it is not taken."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritten(error) from None


def show_json(value: object) -> None:
    """Write one JSON object to standard output."""
    say(json.dumps(value) + "\n")


def note(text: str) -> None:
    """Write one line to standard error, dim where that is possible."""
    _tell(text, dim=True)


def note_json(value: object) -> None:
    """Write one JSON object as a line to standard error."""
    _tell(json.dumps(value))


def complain(sentence: str) -> None:
    """Write an error to standard error, in one line."""
    _tell(f"pixedge: {' '.join(sentence.split())}")


def ask(prompt: str) -> None:
    """Write a prompt to standard error; the answer goes into the same line."""
    with contextlib.suppress(OSError):
        sys.stderr.write(prompt)
        sys.stderr.flush()


def _tell(text: str, **styles: Any) -> None:
    """Write a line to standard error; where it cannot be written, nothing else is stopped by that."""
    line = one_line(text)
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{_style(line, sys.stderr, styles)}\n")
        sys.stderr.flush()


def log_to_stderr() -> None:
    """Let warnings and errors of the logging module go to standard error; a full disk stops nothing."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    handler.addFilter(_is_ours)
    logging.basicConfig(handlers=[handler])


def quiet_libraries() -> None:
    """Keep libraries' warnings and log records off standard error, where pixedge says what a user can use.

    Whoever sets python -W or PYTHONWARNINGS sees the warnings.
    """
    if not sys.warnoptions:
        warnings.showwarning = lambda *_, **__: None
    if logging.lastResort is not None:  # what writes where a program has set up no logging
        logging.lastResort.addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in ("pixedge", "pixedge_export", "uvicorn")


def _style(text: str, stream: TextIO, styles: dict[str, Any]) -> str:
    return click.style(text, **styles) if takes_styles(stream) else text


# Streams that are closed or full


def open_closed_streams() -> None:
    """Put the null device in the place of standard streams that are closed.

    Otherwise the next file to be opened would get a stream's number, and then what libraries write there.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def flush_streams() -> str | None:
    """Write out what waits; give a sentence where standard output does not take it.

    What cannot be written is dropped, or the interpreter would complain of it at its end. A pipe whose reader
    has left, `head` for one, is no error.
    """
    failure = _flush(sys.stdout)
    _flush(sys.stderr)
    return None if failure is None or isinstance(failure, BrokenPipeError) else str(_unwritten(failure))


def _unwritten(error: OSError) -> OutputError:
    return OutputError(
        f"standard output cannot be written ({error.strerror}); send it to another file, or make room there"
    )


def _flush(stream: TextIO) -> OSError | None:
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


# How figures are written


def size(n_bytes: int) -> str:
    """Write a size for people, in powers of 1000 as disks are sold.

    >>> size(999), size(9_500_000_000)
    ('999 B', '9.5 GB')
    """
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.5 else f"{value:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Write a time for people.

    >>> duration(42), duration(100), duration(12000)
    ('42 s', '2 min', '3 h 20 min')
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Give the lines of a table: the first column to the left, the others to the right.

    >>> table(("method", "KL"), [("rtn", "0.25")])
    ['method    KL', 'rtn     0.25']
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in (head, *rows))
    ]
