"""The machine below the libraries: Python, CPU, compiler, disk, graphics cards.

Nothing here imports torch or ONNX Runtime, so it can be told even where they are broken.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pixedge.doctor.finding import Finding, Subject, green, red, yellow
from pixedge.doctor.nvml import Card, Driver, NvmlError, cards_on_the_bus, read_driver
from pixedge.kernels.cuda import launcher
from pixedge.terminal import size

OLDEST_PYTHON = (3, 11)
PIXTRAL_EXPORT = 36_000_000_000
"""Bytes of disk for Pixtral-12B's checkpoint (25 GB), its 4-bit folder and what lies beside it meanwhile."""

FULL_DISK = 200_000_000
"""Bytes below which nothing can be done on a disk."""

# Instructions that kernels use, as /proc/cpuinfo spells them, the best last.
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
)


def check_python(subject: Subject) -> Iterator[Finding]:
    """Python's version and word size."""
    version = platform.python_version()
    where = f"Python {version} ({platform.system()} {platform.machine()}), {sys.executable}"
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        yield red("python", where, f"install Python {oldest} or later, and pixedge into it")
    elif sys.maxsize < 2**32:
        yield red("python", f"{where}, 32 bits", "install a 64-bit Python, and pixedge into it")
    else:
        yield green("python", where)


def find_driver() -> tuple[Driver | None, str]:
    """Return NVIDIA's driver, and why it does not answer: "" where it does, or where there is none."""
    try:
        return read_driver(), ""
    except (NvmlError, AttributeError, OSError) as error:
        return None, str(error)


def check_cards(subject: Subject) -> Iterator[Finding]:
    """The driver, the cards, how much of their memory is free, and who holds the rest."""
    driver, failure = find_driver()
    level = yellow if subject.device == "cpu" else red
    if failure:
        yield level("driver", f"NVIDIA's driver does not answer ({failure})", "restart, or install it again")
        return
    if driver is None or not driver.cards:
        if plugged := cards_on_the_bus():
            cards = "an NVIDIA card is" if plugged == 1 else f"{plugged} NVIDIA cards are"
            yield level("driver", f"{cards} plugged in, but no driver uses it", "install NVIDIA's driver")
        elif subject.device.startswith("cuda"):
            yield red("gpu", "no NVIDIA card was found", "use --device cpu, or a machine with a card")
        else:
            yield green("gpu", "none; pixedge runs on the CPU")
        return
    cuda = ".".join(map(str, driver.cuda))
    yield green("driver", f"NVIDIA {driver.version}, for CUDA up to {cuda}")
    for index, card in enumerate(driver.cards):
        yield _card(f"gpu {index}" if len(driver.cards) > 1 else "gpu", card)


def _card(name: str, card: Card) -> Finding:
    held = ", ".join(
        f"{holder.name} ({holder.pid}{'' if holder.bytes is None else f', {size(holder.bytes)}'})"
        for holder in card.holders
    )
    detail = f"{card.name}, {size(card.total)}, {size(card.free)} free"
    detail += f"; held by {held}" if held else ""
    if card.free < card.total / 2:
        who = (
            f"end {card.holders[0].name} ({card.holders[0].pid})"
            if card.holders
            else "end what uses the card"
        )
        return yellow(name, detail, f"{who} to have its memory, or give pixedge a --vram-limit that fits")
    return green(name, detail)


def check_cpu(subject: Subject) -> Iterator[Finding]:
    """The CPU and the instructions that matter."""
    text = _read(Path("/proc/cpuinfo"))
    model = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)$", text, re.MULTILINE)
    found = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    here = [name for name in _FEATURES if name in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = (model[1] if model else platform.processor() or platform.machine()).strip()
    detail = f"{name}, {cores} {'core' if cores == 1 else 'cores'}"
    if found is None:
        yield green("cpu", f"{detail}; its instructions are not told on this system")
    elif {"avx2", "asimd"} & set(here):
        yield green("cpu", f"{detail}, {' '.join(here)}")
    else:
        yield yellow("cpu", f"{detail}, without AVX2", "answers will be slow: use a CPU from 2013 or later")


def check_compiler(subject: Subject) -> Iterator[Finding]:
    """A C compiler, for the CPU kernels at install; with a GPU the one that Triton uses, and Python.h."""
    if subject.gpu and sys.platform != "win32":
        yield from _check_launcher()
        return
    built = any(_kernel_files())
    path = next(filter(None, map(shutil.which, [os.environ.get("CC", ""), "cc", "gcc", "clang", "cl"])), None)
    if path is not None:
        yield green("compiler", _first_line(path) or path)
    elif built:
        yield green("compiler", "none was found, and none is needed: the CPU kernels are built")
    else:
        yield yellow(
            "compiler",
            "none was found, and the CPU kernels are not built, so answers are slower",
            "install gcc, then: pip install --force-reinstall --no-deps --no-cache-dir pixedge",
        )


def _check_launcher() -> Iterator[Finding]:
    """What Triton needs at its first launch."""
    path, header = launcher.compiler(), launcher.header()
    if path is None:
        asked = os.environ.get("CC")
        detail = (
            f"CC is {asked!r}, which is not there" if asked is not None else "no gcc and no clang is there"
        )
        advice = "unset CC, or name a compiler that is there" if asked is not None else launcher.remedy()
        yield red("compiler", f"{detail}, and the GPU kernels need a compiler at their first launch", advice)
    else:
        yield green("compiler", _first_line(path) or path)
    if header.is_file():
        yield green("Python.h", str(header))
    else:
        detail = f"{header} is missing, and the GPU kernels need it at their first launch"
        yield red("Python.h", detail, launcher.remedy())


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Room for an export where one would be put: in the folder that the command was given in."""
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    detail = f"{size(free)} free in {folder}"
    if free < FULL_DISK:
        yield red("disk", f"{detail}: full", "free some space, or go to a folder on another disk")
    elif free < PIXTRAL_EXPORT:
        yield yellow(
            "disk",
            detail,
            f"Pixtral-12B's checkpoint and export take {size(PIXTRAL_EXPORT)}: free some space",
        )
    else:
        yield green("disk", detail)


def _kernel_files() -> Iterator[Path]:
    folder = Path(__file__).parents[1] / "kernels" / "cpu"
    return (file for file in folder.glob("_cpu*") if file.suffix in (".so", ".pyd", ".dylib"))


def _first_line(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{done.stdout.partition(chr(10))[0].strip()}, {program}" if done.stdout.strip() else program


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
