"""``pixedge import``: a GPTQ folder that another tool wrote to one that ``pixedge run`` answers from."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixedge.commands import option_values
from pixedge.errors import ExportError
from pixedge.last_export import write_last_export
from pixedge.terminal import note, progress, show, size

if TYPE_CHECKING:
    from pixedge_export.pipeline import Event

_FOLDER = click.Path(path_type=Path)
_NEEDED = ("pixedge_export", "onnx", "onnxscript")

_EXAMPLES = """\
\b
Examples:
  pixedge import Pixtral-12B-GPTQ models/pixtral
  pixedge import Pixtral-12B-GPTQ models/pixtral --tekken Pixtral-12B-2409/tekken.json
"""


@click.command("import", epilog=_EXAMPLES, short_help="Take over a GPTQ folder of another tool.")
@click.argument("source", type=_FOLDER)
@click.argument("out", type=_FOLDER)
@click.option("--tekken", metavar="FILE", type=_FOLDER, help="The model's tekken.json [SOURCE/tekken.json].")
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
@click.option("--force", is_flag=True, help="Replace an export once the new one is complete.")
@click.option("--quiet", is_flag=True, help="No progress, only the new folder's path.")
def import_(
    source: Path, out: Path, tekken: Path | None, device: str, threads: int | None, force: bool, quiet: bool
) -> None:
    """Make the folder OUT from SOURCE, a Pixtral that GPTQModel or AutoGPTQ quantised.

    The 4-bit weights stay as they are. What is missing is added: the vision encoder as ONNX graphs, tokenizer
    files, and a known picture's scores for pixedge verify.
    """
    start = time.monotonic()
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"import needs {' and '.join(missing)}; run: pip install 'pixedge[export]'")
    from pixedge_export.importer import import_folder

    with progress(quiet=quiet, keep=True) as report:

        def step(event: "Event") -> None:
            report(event.phase, event.done, event.total, event.detail)

        folder = import_folder(
            source, out, tekken=tekken, device=device, threads=threads, force=force, report=step
        )
    try:
        write_last_export(folder)
    except (OSError, RuntimeError) as error:
        note(f"the import is done but could not be remembered ({error}); name it with --model")
    if quiet:
        show(str(folder))
        return
    n_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    show(f"{folder}  ({size(n_bytes)}, made in {time.monotonic() - start:.0f} s)\n")
    show('Next:\n  pixedge run --image photo.jpg "What is in this picture?"')
