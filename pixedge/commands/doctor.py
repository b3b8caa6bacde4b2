"""``pixedge doctor``: what of this installation works, what does not, and what to do about it."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixedge.commands import option_values
from pixedge.terminal import progress, show, show_json

if TYPE_CHECKING:
    from pixedge.doctor.finding import Finding

# As words too, and of one width: colour alone tells some people nothing, and a file none.
_WORDS = {"green": "ok  ", "yellow": "warn", "red": "FAIL"}

_EXAMPLES = """\
\b
Examples:
  pixedge doctor
  pixedge doctor --model models/Pixtral-12B-2409-pixedge-4bit --json > report.json

\b
Exit code 0: nothing is broken; 1: something is.
"""


@click.command(epilog=_EXAMPLES, short_help="Examine this installation, and prove that it works.")
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="Folder to prove [what run takes]."
)
@click.option(
    "--device", callback=option_values.device, default="auto", metavar="D", help="auto, cpu or cuda [auto]."
)
@click.option("--quick", is_flag=True, help="Look only: no hashes, no kernels, no model tried out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: ok, counts, findings.")
@click.option("--quiet", is_flag=True, help="No progress, and only what is not ok.")
def doctor(model: Path | None, device: str, quick: bool, as_json: bool, quiet: bool) -> None:
    """Examine Python, packages, libraries, GPU, CPU, disk and models; then try out kernels and a model.

    Each line is ok (green), warn (yellow: works, and could work better) or FAIL (red), the last two with
    what to do about it.
    """
    from pixedge.doctor.examination import examine

    counts = Counter[str]()
    findings: list[Finding] = []
    with progress(quiet=quiet) as report:

        def begins(name: str, done: int, total: int) -> None:
            report("checks", done, total, name)

        for finding in examine(device, model, not quick, begins):
            counts[finding.level] += 1
            findings.append(finding)
            if not as_json and not (quiet and finding.level == "green"):
                level = finding.level
                show(_line(finding), mark=_WORDS[level], fg=level, bold=level == "red")
    numbers = {level: counts[level] for level in _WORDS}
    if as_json:
        rows = [asdict(finding) for finding in findings]
        show_json({"ok": not counts["red"], **numbers, "findings": rows})
    elif not quiet:
        show(_summary(numbers))
    if counts["red"]:
        raise click.exceptions.Exit(1)


def _line(finding: "Finding") -> str:
    line = f"  {finding.name}: {finding.detail}"
    return f"{line}\n      -> {finding.advice}" if finding.advice else line


def _summary(counts: dict[str, int]) -> str:
    parts = [f"{counts['green']} ok", f"{counts['yellow']} could be better", f"{counts['red']} failed"]
    return ", ".join(parts)
