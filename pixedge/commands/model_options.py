"""What every command that loads a model lets one say about it: which, where, and how much memory it may take.

A command takes them all with ``@model_options`` and gets one ``ModelOptions``:

    @click.command()
    @model_options
    def ask(options: ModelOptions, ...) -> None:
        folder = options.find(quiet)
        with progress(quiet=quiet) as report:
            model = options.load(folder, report)
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixedge.commands import option_values
from pixedge.errors import ArtifactError, UsageError
from pixedge.last_export import read_last_export
from pixedge.recognition import check_folder
from pixedge.terminal import note

if TYPE_CHECKING:
    from pixedge.model import Model


@dataclass(frozen=True)
class ModelOptions:
    """Values of the options; those of ``load`` mean what ``pixedge.load`` says.

    model: the folder that --model names. max_image_size: pixels, vram_limit: bytes.
    """

    model: str | None = None
    max_image_size: int | None = None
    device: str = "auto"
    vision_device: str = "auto"
    dtype: str = "auto"
    kv_cache: str = "auto"
    context: int | None = None
    vram_limit: int | None = None
    threads: int | None = None

    def find(self, quiet: bool = False) -> Path:
        """Give the folder from --model, $PIXEDGE_MODEL or the last export; without --model, say which.

        Raises UsageError where none is named, ArtifactError where what is named is no folder.
        """
        if self.model is not None:
            folder, origin = Path(self.model), "--model"
        elif named := os.environ.get("PIXEDGE_MODEL"):
            folder, origin = Path(named), "$PIXEDGE_MODEL"
        elif last := read_last_export():
            folder, origin = last, "the last export"
        else:
            raise UsageError(
                "no model was exported yet; run 'pixedge export CHECKPOINT' once, or give --model DIR"
            )
        if not folder.is_dir():
            check_folder(folder)
            raise ArtifactError(
                f"{folder} ({origin}) is not a folder; give one that pixedge export made, or export again"
            )
        if self.model is None and not quiet:
            note(f"model: {folder} ({origin})")
        return folder

    def load(
        self, folder: Path, progress: Callable[[str, int, int], None] | None = None, **more: Any
    ) -> "Model":
        """Load the folder as the options say; more: arguments of ``pixedge.load`` that no option has."""
        import pixedge

        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        return pixedge.load(folder, **given, **more, progress=progress)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them together as ``options``."""

    @functools.wraps(command)
    def with_options(*args: Any, **values: Any) -> Any:
        own = {field.name: values.pop(field.name) for field in fields(ModelOptions)}
        return command(*args, options=ModelOptions(**own), **values)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


MODEL = click.option("--model", metavar="DIR", help="Exported folder [$PIXEDGE_MODEL, else the last export].")
MAX_IMAGE_SIZE = click.option(
    "--max-image-size",
    type=int,
    callback=option_values.count,
    metavar="PX",
    help="Cap on a picture's longer side [the model's].",
)
KV_CACHE = click.option(
    "--kv-cache",
    "--kv",
    "kv_cache",
    type=click.Choice(["auto", "16bit", "8bit"]),
    default="auto",
    metavar="B",
    help="auto, 16bit or 8bit: half the memory [auto].",
)
VRAM_LIMIT = click.option(
    "--vram-limit",
    "--vram",
    "vram_limit",
    callback=option_values.memory,
    metavar="SIZE",
    help="Most memory of the device, 24GiB [what is free].",
)
_OPTIONS = (
    MODEL,
    MAX_IMAGE_SIZE,
    click.option(
        "--device",
        callback=option_values.device,
        default="auto",
        metavar="D",
        help="auto, cpu, cuda or cuda:N [auto].",
    ),
    click.option(
        "--vision-device",
        callback=option_values.device,
        default="auto",
        metavar="D",
        help="The same, for pictures [auto].",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        metavar="T",
        help="auto, float32, bfloat16 or float16 [auto].",
    ),
    KV_CACHE,
    click.option(
        "--context",
        type=int,
        callback=option_values.count,
        metavar="N",
        help="Tokens to take memory for [the model's].",
    ),
    VRAM_LIMIT,
    click.option(
        "--threads", type=int, callback=option_values.count, metavar="N", help="CPU threads [all cores]."
    ),
)
