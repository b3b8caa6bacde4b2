"""``pixedge pull``: a checkpoint from a hub to a folder that ``pixedge export`` reads."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import click

from pixedge.pull import pull as run_pull
from pixedge.terminal import Report, note, progress, show, size

_EXAMPLES = """\
\b
Examples:
  pixedge pull mistralai/Pixtral-12B-2409
  pixedge pull mistralai/Pixtral-12B-2409 --out /data/pixtral

\b
A gated or private repository needs a token: set HF_TOKEN, or run hf auth login once.
HF_ENDPOINT names another hub.
"""


@click.command(epilog=_EXAMPLES, short_help="Fetch a checkpoint from the Hugging Face hub.")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder to fill [models/NAME].")
@click.option("--revision", metavar="REV", help="Branch, tag or commit [main].")
@click.option("--quiet", is_flag=True, help="No progress, only the folder's path.")
def pull(repository: str, out: Path | None, revision: str | None, quiet: bool) -> None:
    """Fetch the checkpoint OWNER/NAME from the hub: what export reads, and one copy of the weights.

    A pull that was stopped goes on where it was. Every file is checked against the hub's hashes.
    """
    folder = pull_with_progress(repository, out, revision=revision, quiet=quiet)
    show(str(folder) if quiet else _summary(folder))


def pull_with_progress(
    repository: str, out: Path | None = None, *, revision: str | None = None, quiet: bool = False
) -> Path:
    """Pull on behalf of a person: progress on standard error, and a line there when Ctrl-C stops it.

    Returns the folder and raises what pixedge.pull.pull raises.
    """
    try:
        with progress(quiet=quiet, keep=True) as report:
            return run_pull(repository, out, revision=revision, progress=Meter(report))
    except KeyboardInterrupt as stop:
        note(str(stop) or "stopped")
        raise


class Meter:
    """Shows bytes as how much and how fast; how long still is the bar's matter."""

    # A few pictures a second are enough, and the speed is that of the last half minute.
    INTERVAL = 0.1
    WINDOW = 30.0

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        """Hand every step worth showing on to report."""
        self._report, self._clock = report, clock
        self._phase = ""
        self._steps: deque[tuple[float, int]] = deque()  # when, and the bytes that were done then

    def __call__(self, phase: str, done: int, total: int, name: str) -> None:
        """Take a step of a pull."""
        now = self._clock()
        if phase != self._phase or (self._steps and done < self._steps[-1][1]):
            self._phase = phase
            self._steps.clear()
        elif self._steps and now - self._steps[-1][0] < self.INTERVAL and done < total:
            return
        self._steps.append((now, done))
        while len(self._steps) > 2 and now - self._steps[0][0] > self.WINDOW:
            self._steps.popleft()
        self._report(phase, done, total, self._detail(done, total))

    def _detail(self, done: int, total: int) -> str:
        text = f"{size(done)} of {size(total)}"
        (start, before), (now, after) = self._steps[0], self._steps[-1]
        if now - start < 1 or after == before:
            return text
        speed = (after - before) / (now - start)
        return f"{text}, {size(round(speed))}/s"


def _summary(folder: Path) -> str:
    n_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return f"{folder}  ({size(n_bytes)})\n\nNext:\n  pixedge export {folder}"
