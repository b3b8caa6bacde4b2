"""``pixedge export``: a checkpoint to a folder that ``pixedge run`` answers from."""

import json
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixedge.commands import option_values
from pixedge.commands.pull import pull_with_progress
from pixedge.errors import CheckpointError, ExportError
from pixedge.last_export import write_last_export
from pixedge.pull import looks_like_repository
from pixedge.recognition import check_folder
from pixedge.terminal import note, note_json, progress, show, show_json, size, table

if TYPE_CHECKING:
    from pixedge_export.pipeline import Event

_FOLDER = click.Path(path_type=Path)
_NEEDED = ("pixedge_export", "onnx", "onnxscript")

_EXAMPLES = """\
\b
Examples:
  pixedge export models/Pixtral-12B-2409
  pixedge export mistralai/Pixtral-12B-2409
  pixedge export models/Pixtral-12B-2409 --calibration my-samples --out /data/pixtral
"""


@click.command(epilog=_EXAMPLES, short_help="Make a 4-bit folder from a checkpoint.")
@click.argument("source")
@click.option("--out", metavar="DIR", type=_FOLDER, help="New folder [SOURCE-pixedge-4bit, beside SOURCE].")
@click.option(
    "--method",
    metavar="M",
    type=click.Choice(["gptq", "rtn"]),
    default="gptq",
    help="gptq, or rtn: quick rounding [gptq].",
)
@click.option("--calibration", metavar="DIR", type=_FOLDER, help="Your samples [a small built-in mix].")
@click.option(
    "--samples",
    metavar="N",
    type=int,
    callback=option_values.count,
    help="Most samples to use [128 of the mix, all of DIR].",
)
@click.option(
    "--group-size",
    metavar="N",
    type=int,
    callback=option_values.count,
    default=128,
    help="Inputs that share a scale [128].",
)
@click.option(
    "--device",
    metavar="D",
    callback=option_values.device,
    default="auto",
    help="auto, cpu, cuda or cuda:N [auto].",
)
@click.option(
    "--threads", metavar="N", type=int, callback=option_values.count, help="CPU threads [all cores]."
)
@click.option("--force", is_flag=True, help="Replace an export; try with too little memory or disk.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as one JSON object a line.")
@click.option("--quiet", is_flag=True, help="No progress and no report, only the new folder's path.")
def export(
    source: str,
    out: Path | None,
    method: str,
    calibration: Path | None,
    samples: int | None,
    group_size: int,
    device: str,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export the checkpoint folder SOURCE, in Mistral's or Hugging Face's layout, to a folder that runs.

    SOURCE may also be a repository OWNER/NAME of the hub, which is first pulled to models/NAME. An export
    that was stopped goes on behind its last finished layer when the same command is given again.
    """
    start = time.monotonic()
    _check_extra()
    checkpoint = _checkpoint(source, quiet=quiet or as_json)
    from pixedge_export.destination import unfinished
    from pixedge_export.pipeline import Recipe
    from pixedge_export.pipeline import export as run_export

    if out is None:
        whole = checkpoint.resolve()
        out = whole.with_name(f"{whole.name}-pixedge-4bit")
    if calibration is None and method == "gptq" and not (quiet or as_json):
        note(
            "calibrating on a small built-in mix; pictures and texts like yours do better: --calibration DIR"
        )
    begun = False
    with progress(quiet=quiet or as_json, keep=True) as report:

        def step(event: "Event") -> None:
            nonlocal begun
            begun = begun or event.phase == "plan"
            if as_json and not quiet:
                note_json(asdict(event))
            report(event.phase, event.done, event.total, event.detail)

        try:
            folder = run_export(
                checkpoint,
                out,
                Recipe(method=method, group_size=group_size),  # type: ignore[arg-type]  # one of the choices
                calibration=calibration,
                samples=samples,
                device=device,
                threads=threads,
                force=force,
                report=step,
            )
        except BaseException:
            if begun and (left := unfinished(out)).is_dir():
                note(f"what is finished is kept in {left}; the same command goes on from there")
            raise
    try:
        write_last_export(folder)
    except (OSError, RuntimeError) as error:
        note(f"the export is done but could not be remembered ({error}); name it with --model")
    seconds = time.monotonic() - start
    if as_json:
        show_json(_result(folder, seconds))
    else:
        show(str(folder) if quiet else _summary(folder, seconds))


def _checkpoint(source: str, *, quiet: bool) -> Path:
    """Give the folder of a checkpoint, pulled first where the source is a repository and no folder."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    check_folder(folder)
    # models/pixtrall is a slip in a path, not somebody's repository
    if looks_like_repository(source) and not Path(folder.parts[0]).exists():
        return pull_with_progress(source, quiet=quiet)
    raise CheckpointError(
        f"{source} is not a folder; give the folder of a checkpoint, or a repository such as "
        "mistralai/Pixtral-12B-2409"
    )


def _check_extra() -> None:
    """Refuse to start where what only the export needs is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"export needs {' and '.join(missing)}; run: pip install 'pixedge[export]'")


def _n_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _result(folder: Path, seconds: float) -> dict[str, Any]:
    """Give what --json prints: the folder, its size and what 4 bits cost, as in export_report.json."""
    report = json.loads((folder / "export_report.json").read_text(encoding="utf-8"))
    cost = report["divergence_from_16_bits"]
    found = {"folder": str(folder), "bytes": _n_bytes(folder), "seconds": round(seconds, 2)}
    return found | {"divergence_from_16_bits": cost}


def _summary(folder: Path, seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    took = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    lines = [f"{folder}  ({size(_n_bytes(folder))}, made in {took})"]
    if rows := _divergence(folder / "export_report.json"):
        lines += ["", *table(("difference from 16 bits", "KL (nats)", "same first choice"), rows)]
    return "\n".join([*lines, "", "Next:", '  pixedge run --image photo.jpg "What is in this picture?"'])


def _divergence(file: Path) -> list[tuple[str, str, str]]:
    """Give a row for each method and kind of token in the report; none where it holds something else."""
    names = {"text": "text", "image": "text after a picture"}
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))["divergence_from_16_bits"]
        return [
            (f"{method}, {names.get(kind, kind)}", f"{found['kl']:.4f}", f"{found['top1']:.1%}")
            for method, kinds in measured.items()
            for kind, found in kinds.items()
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
