"""What a person sees on standard error while work goes on, and how numbers are written for them.

Bars with the remaining time where standard error is a terminal; plain lines, few of them, where it is a file.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import click

# A file gets a line of progress at most this often, in seconds.
_PLAIN_INTERVAL = 10.0

# A model that has read a picture may repeat what stands in it, and a terminal obeys control characters.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


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
    elif sys.stderr.isatty():
        with _bars(keep) as report:
            yield report
    else:
        yield _lines(keep, clock)


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
        # A layer of a large model takes minutes: the speed is taken from the last ten.
        speed_estimate_period=600.0,
    )
    tasks: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int, detail: str = "") -> None:
        if phase not in tasks:
            for task in display.tasks:
                display.update(task.id, detail="")
                display.stop_task(task.id)
            tasks[phase] = display.add_task(phase, total=total or None, detail=detail)
        display.update(tasks[phase], completed=done, total=total or None, detail=detail)

    with display:
        yield report


def _lines(keep: bool, clock: Callable[[], float]) -> Report:
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
        if not (begins and keep) and now - shown < _PLAIN_INTERVAL:
            return
        shown = now
        share = f" {done / total:.0%}" if total and not begins else ""
        left = ""
        if already < done < total:
            left = f" ({duration((total - done) * (now - start) / (done - already))} left)"
        click.echo(f"{phase}{share}{f' {detail}' if detail else ''}{left}", err=True)

    return report


def say(text: str) -> None:
    """Write a piece of an answer to standard output at once; control characters never reach a terminal."""
    # Not click.echo, which takes what looks like a colour out of the text.
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write one line to standard error, dim where it is a terminal."""
    click.echo(click.style(text, dim=True), err=True)


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
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in (head, *rows))
    ]
