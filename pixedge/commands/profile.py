"""``pixedge profile``: what a model does on this machine, by stage, beside the machine's limits."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixedge.commands import option_values
from pixedge.commands.model_options import ModelOptions, model_options
from pixedge.commands.pictures import check_sources, expand_sources, is_url
from pixedge.commands.standard_input import piped_input
from pixedge.errors import PixedgeError, UsageError
from pixedge.terminal import note, progress, show_json

if TYPE_CHECKING:
    from pixedge.config import ModelConfig
    from pixedge.profile.run import Profiled
    from pixedge.profile.settings import Settings

_EXAMPLES = """\
\b
Examples:
  pixedge profile --html profile.html
  pixedge profile --image photo.jpg --json > before.json
  pixedge profile --image photo.jpg --compare before.json
  pixedge profile --synthetic pixtral-12b --layers 4
"""
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog=_EXAMPLES, short_help="Measure speed and memory by stage.")
@model_options
@click.option("--synthetic", metavar="SHAPE", help="Random weights in a shape, pixtral-12b or demo [none].")
@click.option(
    "--layers",
    type=int,
    callback=option_values.count,
    metavar="N",
    help="With --synthetic: decoder layers to make; others are reckoned [all].",
)
@click.option(
    "--image", "images", metavar="X", multiple=True, help="Picture to ask about; repeatable [drawn ones]."
)
@click.option("--allow-url", is_flag=True, help="Let --image download http(s) addresses.")
@click.option(
    "--side",
    "sides",
    type=int,
    multiple=True,
    callback=option_values.counts,
    metavar="PX",
    help="Side of a drawn picture; repeatable [half of the largest, and that].",
)
@click.option(
    "--prompt",
    "prompts",
    type=int,
    multiple=True,
    callback=option_values.counts,
    metavar="N",
    help="Tokens of a prompt; repeatable [128, 512, 2048].",
)
@click.option(
    "--depth",
    "depths",
    type=int,
    multiple=True,
    callback=option_values.naturals,
    metavar="N",
    help="Tokens before an answer; repeatable [0, 1024, 4096].",
)
@click.option(
    "--batch",
    "batches",
    type=int,
    multiple=True,
    callback=option_values.counts,
    metavar="N",
    help="Answers at a time; repeatable [2, 4, 8].",
)
@click.option(
    "--requests",
    type=int,
    default=8,
    callback=option_values.natural,
    metavar="M",
    help="Questions of the serving figures; 0 is none [8].",
)
@click.option(
    "--concurrency",
    type=int,
    default=4,
    callback=option_values.count,
    metavar="N",
    help="How many of these at a time [4].",
)
@click.option(
    "--repeats",
    type=int,
    default=5,
    callback=option_values.count,
    metavar="N",
    help="Runs of a row at most; fewer where they are long [5].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--html", type=_FILE, metavar="FILE", help="Write a page with plots [none].")
@click.option("--trace", type=_FILE, metavar="FILE", help="Write a trace for ui.perfetto.dev [none].")
@click.option(
    "--compare", type=_FILE, metavar="FILE", help="Compare with what --json printed before [nothing]."
)
@click.option("--quiet", is_flag=True, help="No progress, only warnings and errors.")
def profile(
    options: ModelOptions,
    synthetic: str | None,
    layers: int | None,
    images: tuple[str, ...],
    allow_url: bool,
    sides: tuple[int, ...],
    prompts: tuple[int, ...],
    depths: tuple[int, ...],
    batches: tuple[int, ...],
    requests: int,
    concurrency: int,
    repeats: int,
    as_json: bool,
    html: Path | None,
    trace: Path | None,
    compare: Path | None,
    quiet: bool,
) -> None:
    """Measure a model: loading, pictures, prompts, first tokens, answers, several questions at a time.

    Every row is the median of several runs, beside the least that it could take at the speed with which this
    machine reads memory and multiplies matrices, measured in the same run.
    """
    check_sources(images, allow_url)
    if images and sides:
        raise UsageError("--side is for drawn pictures, and --image gives others; give one of them")
    for file in (html, trace):
        _check_writable(file)
    from pixedge.profile.compare import read_before
    from pixedge.profile.settings import Settings

    before = None if compare is None else read_before(compare)
    settings = Settings(
        prompts or None,
        depths or None,
        batches or None,
        sides or None,
        _picture_files(images),
        options.max_image_size,
        repeats,
        requests=requests,
        concurrency=concurrency,
    )
    profiled = _measure(options, synthetic, layers, settings, quiet)
    _print(profiled, before, as_json)
    if html is not None:
        from pixedge.profile.page import render

        _write(html, render(profiled.record), quiet)
    if trace is not None:
        _write(trace, json.dumps(profiled.trace()), quiet)


def _measure(
    options: ModelOptions, synthetic: str | None, layers: int | None, settings: "Settings", quiet: bool
) -> "Profiled":
    """Load or make what is to be profiled, and profile it."""
    if synthetic is None:
        if layers is not None:
            raise UsageError("--layers is for random weights; add --synthetic pixtral-12b")
        folder = options.find(quiet)
        from pixedge.profile.run import profile_folder

        with progress(quiet=quiet) as report:
            return profile_folder(folder, _load_arguments(options), settings, report)
    if options.model is not None:
        raise UsageError("--synthetic makes a model of its own, and --model names another; give one of them")
    config = _shape(synthetic, layers)
    missing = [name for name in ("onnx", "pixedge_export") if find_spec(name) is None]
    if missing:
        raise PixedgeError(
            f"--synthetic needs {' and '.join(missing)} to make an encoder; "
            "run: pip install 'pixedge[export]'"
        )
    from pixedge.profile.run import profile_random

    with progress(quiet=quiet) as report:
        return profile_random(synthetic, config, layers, _load_arguments(options), settings, report)


def _load_arguments(options: ModelOptions) -> dict[str, Any]:
    """Give what the options say, by the names that ``pixedge.load`` has for it."""
    return {field.name: getattr(options, field.name) for field in fields(options) if field.name != "model"}


def _shape(name: str, layers: int | None) -> "ModelConfig":
    from pixedge.known_shapes import SHAPES

    if name not in SHAPES:
        raise UsageError(f"--synthetic is {name!r:.40}; give one of {', '.join(SHAPES)}")
    whole = SHAPES[name].decoder.n_layers
    if layers is not None and layers > whole:
        raise UsageError(f"--layers is {layers}, and {name} has {whole} decoder layers; give that or fewer")
    return SHAPES[name]


def _picture_files(sources: Sequence[str]) -> tuple[bytes, ...]:
    """Read the files that sources name, and see that they are pictures."""
    if not sources:
        return ()
    from pixedge.fetch import fetch_image
    from pixedge.image import ImageLimits, read_bytes, read_image

    limits = ImageLimits()
    names = expand_sources(sources)
    limits.check_count(len(names))
    found = []
    for name in names:
        if is_url(name):
            data = fetch_image(name, limits)
        elif name == "-" and (stream := piped_input()) is not None:
            data, name = stream.read(limits.max_bytes + 1), "standard input"
        else:
            data = read_bytes(Path(name), name, limits)
        read_image(data, name, limits)
        found.append(data)
    return tuple(found)


def _print(profiled: "Profiled", before: dict[str, Any] | None, as_json: bool) -> None:
    """Print the object, or the tables; with what changed."""
    from pixedge.profile.compare import compare_records, compare_table
    from pixedge.profile.table import print_wide, profile_tables

    changes = None if before is None else compare_records(before, profiled.record)
    if as_json:
        found = profiled.record if changes is None else profiled.record | {"compared": changes}
        show_json(found)
        return
    print_wide(profile_tables(profiled.record))
    if changes is not None:
        print_wide(compare_table(changes))


def _check_writable(file: Path | None) -> None:
    """Refuse, before minutes of measuring, a file that cannot be written."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise UsageError(f"{file} cannot be written: there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK):
        raise PixedgeError(f"{file} cannot be written: {file.parent} may not be changed; choose another")


def _write(file: Path, text: str, quiet: bool) -> None:
    """Write a file beside its name, then give it that name."""
    from pixedge.durable_file import publish

    with _beside(file) as beside:
        beside.write_text(text, encoding="utf-8")
        publish(beside, file)
    if not quiet:
        note(f"wrote {file}")


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """Give a name for a file in the making, and leave nothing of it behind."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)
