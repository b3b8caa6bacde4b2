"""``pixedge plan``: whether a model fits a device, with how much context, how fast, and what bounds it."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixedge.commands import option_values
from pixedge.commands.model_options import KV_CACHE, MAX_IMAGE_SIZE, VRAM_LIMIT
from pixedge.errors import UsageError
from pixedge.recognition import check_folder
from pixedge.terminal import note, show, show_json

if TYPE_CHECKING:
    from pixedge.config import ModelConfig
    from pixedge.plan import Setup
    from pixedge.prediction import Machine

_MARGIN = 512 << 20
"""Bytes of a card that are left to its driver and to a desktop where no --vram-limit is given."""

_EXAMPLES = """\
\b
Examples:
  pixedge plan pixtral-12b --card "RTX 4090" --images 4x1024x1024
  pixedge plan pixtral-12b --vram 12GiB --context 16384
  pixedge plan models/demo-pixedge-4bit --device cpu --json

\b
Exits with 0 where it fits and with 1 where it does not.
"""


@click.command(epilog=_EXAMPLES, short_help="Tell whether a model fits, before it is loaded.")
@click.argument("model")
@click.option(
    "--context", type=int, callback=option_values.count, metavar="N", help="Tokens of an answer [most]."
)
@click.option("--images", metavar="NxWxH", help="Pictures of a prompt and their size [1 of the largest].")
@click.option(
    "--batch", type=int, default=1, callback=option_values.count, metavar="N", help="Answers at a time [1]."
)
@MAX_IMAGE_SIZE
@VRAM_LIMIT
@KV_CACHE
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    metavar="T",
    help="auto, float32, bfloat16 or float16 [auto].",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    metavar="D",
    help="auto, cpu or cuda [auto].",
)
@click.option(
    "--vision-device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    metavar="D",
    help="The same, for pictures [auto].",
)
@click.option("--card", metavar="NAME", help="A graphics card, 'RTX 4090' [the one that is there].")
@click.option("--bandwidth", type=float, metavar="GB/s", help="Of another device's memory [the card's].")
@click.option("--tflops", type=float, metavar="N", help="Of its 16-bit products [the card's].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    model: str,
    context: int | None,
    images: str | None,
    batch: int,
    max_image_size: int | None,
    vram_limit: int | None,
    kv_cache: str,
    dtype: str,
    device: str,
    vision_device: str,
    card: str | None,
    bandwidth: float | None,
    tflops: float | None,
    as_json: bool,
) -> None:
    """Plan the memory of MODEL and predict its speed. Nothing is loaded, and no GPU is needed.

    MODEL is an exported folder, a checkpoint folder, or a known shape: pixtral-12b or demo.
    """
    from pixedge.outlook import Question, look_ahead

    subject = _subject(model)
    _tell_context(subject.config, context)
    where = _target(device, card, vram_limit, bandwidth, tflops)
    pictures, size = _images(images, subject.config)
    question = Question(context, pictures, size, max_image_size, batch)
    setup = _setup(subject, where, kv_cache, dtype, vision_device)
    outlook = look_ahead(subject.config, setup, question, where.limit, where.machine)
    if as_json:
        show_json({"model": model, "device_name": where.name} | outlook.to_json())
    else:
        from pixedge.commands.plan_page import lines

        show("\n".join(lines(model, where.name, question, outlook)))
    if not outlook.fits:
        raise click.exceptions.Exit(1)


@dataclass(frozen=True)
class _Subject:
    """A geometry, and what an exported folder says of its weights."""

    config: "ModelConfig"
    group_size: int = 128
    zeros: bool = False


@dataclass(frozen=True)
class _Target:
    """A device: its kind, what it is called, the bytes that may be taken, and its limits in time."""

    kind: str
    name: str
    limit: int | None
    machine: "Machine | None"


def _subject(model: str) -> _Subject:
    """Read a folder's geometry, or take that of a known shape."""
    from pixedge.config import ModelConfig
    from pixedge.known_shapes import SHAPES
    from pixedge.section import read_json

    folder = Path(model)
    if not folder.is_dir():
        check_folder(folder)
        if model.lower() not in SHAPES:
            raise UsageError(
                f"{model} is no folder and no known shape; give an exported folder, a checkpoint folder "
                f"or one of {', '.join(SHAPES)}"
            )
        return _Subject(SHAPES[model.lower()])
    config = ModelConfig.load(folder)
    manifest = folder / "pixedge.json"
    if not manifest.is_file():
        return _Subject(config)
    recipe = read_json(manifest).get("recipe", {})
    return _Subject(config, int(recipe.get("group_size", 128)), recipe.get("method") == "imported")


def _tell_context(config: "ModelConfig", asked: int | None) -> None:
    """Say which context is the model's own, where the file or --context has a longer one."""
    own = config.decoder.context
    if asked is not None and asked > own:
        note(
            f"a context of {asked:,} tokens goes beyond the {own:,} that the model was trained for; answers "
            "may be poor there"
        )
    elif told := config.decoder.context_note():
        note(told)


def _images(text: str | None, config: "ModelConfig") -> tuple[int, tuple[int, int]]:
    """Read 4x1024x1024, 1024x768 or 4; without a size the encoder's largest, without a number one."""
    side = config.vision.image_size
    if text is None:
        return 1, (side, side)
    numbers = re.fullmatch(r"(?:(\d{1,6})x)?(\d{1,6})x(\d{1,6})|(\d{1,6})", text.strip().lower())
    if numbers is None:
        raise UsageError(
            f"--images is {text!r:.40}; give a number and a size, such as 4x1024x1024, or a number"
        )
    count, width, height, alone = (None if part is None else int(part) for part in numbers.groups())
    if alone is not None:
        return alone, (side, side)
    if not width or not height:
        raise UsageError(f"--images is {text!r:.40}; give sides of 1 pixel or more")
    return 1 if count is None else count, (width, height)


def _target(
    device: str, card: str | None, limit: int | None, bandwidth: float | None, tflops: float | None
) -> _Target:
    """Choose the device that is asked about: a card, the GPU that is there, or this machine's CPU."""
    from dataclasses import replace

    from pixedge.byte_size import write_bytes
    from pixedge.cards import CPU_REFERENCE, card_machine, find_card
    from pixedge.memory import usable_ram

    for name, value in (("--bandwidth", bandwidth), ("--tflops", tflops)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name} is {value}; give a number above 0")
    if device == "cpu" and card is not None:
        raise UsageError(f"--card is {card!r:.40} and --device is cpu; leave one of them out")
    there = None if device == "cpu" or card is not None else _card_here()
    if device == "cpu" or (device == "auto" and card is None and limit is None and there is None):
        machine = replace(
            CPU_REFERENCE,
            bandwidth=CPU_REFERENCE.bandwidth if bandwidth is None else bandwidth * 1e9,
            operations=CPU_REFERENCE.operations if tflops is None else tflops * 1e12,
        )
        return _Target("cpu", "this machine's CPU", usable_ram() if limit is None else limit, machine)
    found: Machine | None = None
    if card is not None:
        found, memory = find_card(card)
        name = found.name
    elif there is not None and limit is None:
        name, memory = there
        with contextlib.suppress(UsageError):  # a card that the table does not have
            found = find_card(name)[0]
    elif limit is None:
        raise UsageError("no GPU is here and none was named; give --card NAME or --vram SIZE")
    else:
        name, memory = f"a GPU of {write_bytes(limit)}", limit
    limit = memory - _MARGIN if limit is None else limit
    if bandwidth is not None or tflops is not None:
        if found is None and (bandwidth is None or tflops is None):
            raise UsageError("give both --bandwidth and --tflops, or a --card that has them")
        found = card_machine(
            name,
            found.bandwidth if bandwidth is None and found else (bandwidth or 0) * 1e9,
            found.operations if tflops is None and found else (tflops or 0) * 1e12,
        )
    return _Target("cuda", name, limit, found)


def _card_here() -> tuple[str, int] | None:
    """Give the name and the bytes of the first GPU of this machine, as its driver tells them."""
    from pixedge.doctor.nvml import NvmlError, read_driver

    try:
        driver = read_driver()
    except NvmlError:
        return None
    return None if driver is None or not driver.cards else (driver.cards[0].name, driver.cards[0].total)


def _setup(subject: _Subject, where: _Target, kv_cache: str, dtype: str, vision_device: str) -> "Setup":
    """Say how the model would be held; on a CPU by the compiled kernels."""
    from pixedge.plan import Setup

    chosen = "bfloat16" if dtype == "auto" else dtype
    narrow = chosen != "float32"
    kind = "cuda" if where.kind == "cuda" else "cpu"
    compiled, tiles = _cpu_kernels()
    vision = kind if vision_device == "auto" else vision_device
    return Setup(
        device="cuda" if kind == "cuda" else "cpu",
        vision_device="cuda" if vision == "cuda" else "cpu",
        dtype=chosen,
        kv_bits=8 if kv_cache == "8bit" or (kv_cache == "auto" and narrow) else 16,
        group_size=subject.group_size,
        zeros=subject.zeros,
        layout=None if compiled or kind == "cuda" or chosen != "bfloat16" else "torch",
        vision_form="fused" if tiles and narrow and vision == "cpu" else None,
    )


def _cpu_kernels() -> tuple[bool, bool]:
    """Tell whether there are compiled kernels for the CPU, and whether they find its matrix tiles.

    Without torch, which takes longer to import than all the rest; ``loading`` asks the library itself.
    """
    wanted = os.environ.get("PIXEDGE_CPU_KERNEL", "")
    folder = Path(__file__).parents[1] / "kernels" / "cpu"
    if wanted == "torch" or not any(folder.glob("_cpu*.*")):
        return False, False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        flags = ""
    return True, wanted in ("", "amx") and "amx_bf16" in flags
