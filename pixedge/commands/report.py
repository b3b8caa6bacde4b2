"""``pixedge report``: what an export cost, from the report in its folder."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from pixedge.errors import ArtifactError, UsageError
from pixedge.last_export import read_last_export
from pixedge.terminal import one_line, show, show_json, size, table

# pixedge.artifact has these names too, but would import torch.
_REPORT, _PAGE = "export_report.json", "export_report.html"
_MOST_BYTES = 64_000_000  # a report on a thousand layers has one
_WORST = 5
_KINDS = {"text": "text", "image": "text after a picture"}


@dataclass(frozen=True)
class _Divergence:
    """KL divergence in nats, and the share of positions whose likeliest token is that of 16 bits."""

    tokens: int
    kl: float
    top1: float


@dataclass(frozen=True)
class _LinearError:
    """Relative output error of one linear, rounded to nearest and as exported."""

    layer: int
    linear: str
    rtn: float
    quantized: float


@dataclass(frozen=True)
class _Summary:
    """What is told of a report. bytes: by part; empty in a report of pixedge 0.1.0. seconds: by phase."""

    name: str
    method: str
    divergence: Mapping[str, Mapping[str, _Divergence]]
    worst_linears: list[_LinearError]
    bytes: Mapping[str, int]
    seconds: Mapping[str, float]


@click.command(short_help="Tell what an export cost.")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object: folder, page and the figures.",
)
def report(folder: Path | None, as_json: bool) -> None:
    """Summarise the report of the exported folder DIR [$PIXEDGE_MODEL, else the last export].

    Prints how far the 4-bit model is from the 16-bit one, the linears that lost most, where the bytes and the
    time went, and where the page with the pictures lies.
    """
    folder = _find_folder(folder)
    summary = _read(folder)
    page = folder / _PAGE if (folder / _PAGE).is_file() else None
    if as_json:
        found = {"folder": str(folder), "page": None if page is None else str(page), **asdict(summary)}
        show_json(found)
    else:
        show("\n".join([*_lines(folder, summary), *(["", f"page: {page}"] if page else [])]))


def _find_folder(folder: Path | None) -> Path:
    """Give the folder named, that of $PIXEDGE_MODEL, or the last export."""
    origin = "" if folder is not None else " ($PIXEDGE_MODEL)"
    if folder is None and (named := os.environ.get("PIXEDGE_MODEL")):
        folder = Path(named)
    if folder is None:
        folder, origin = read_last_export(), " (the last export)"
    if folder is None:
        raise UsageError("no model was exported yet; run 'pixedge export CHECKPOINT' once, or give DIR")
    if not folder.is_dir():
        raise ArtifactError(f"{folder}{origin} is not a folder; give one that pixedge export made")
    return folder


def _read(folder: Path) -> _Summary:
    """Read and check the report; what is not as an export writes it is refused in a sentence."""
    file = folder / _REPORT
    if not file.is_file():
        raise ArtifactError(
            f"{folder} has no {_REPORT}; give a folder that pixedge export made (import measures nothing)"
        )
    try:
        if (n_bytes := file.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"{n_bytes:,} bytes")
        data = json.loads(file.read_text(encoding="utf-8"))
        worst = sorted(map(_linear, data["linear_errors"]), key=lambda row: -row.quantized)[:_WORST]
        return _Summary(
            name=_text(data["source"]["name"]),
            method=_text(data["recipe"]["method"]),
            divergence={
                _text(method): {_text(kind): _divergence(found) for kind, found in kinds.items()}
                for method, kinds in data["divergence_from_16_bits"].items()
            },
            worst_linears=worst,
            bytes={_text(part): _count(value) for part, value in data.get("bytes", {}).items()},
            seconds={_text(phase): _figure(value) for phase, value in data["seconds"].items()},
        )
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file} is damaged ({error!r:.80}); export again") from error


def _linear(row: Mapping[str, Any]) -> _LinearError:
    return _LinearError(
        _count(row["layer"]), _text(row["linear"]), _figure(row["rtn"]), _figure(row["quantized"])
    )


def _divergence(found: Mapping[str, Any]) -> _Divergence:
    return _Divergence(_count(found["tokens"]), _figure(found["kl"]), _figure(found["top1"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return one_line(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def _figure(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a figure")
    return float(value)


def _lines(folder: Path, summary: _Summary) -> list[str]:
    whole = sum(summary.bytes.values())
    about = [summary.name, summary.method, *([size(whole)] if whole else [])]
    lines = [f"{folder}  ({', '.join(about)})"]
    if rows := [
        (f"{method}, {_KINDS.get(kind, kind)}", f"{found.kl:.4f}", f"{found.top1:.1%}")
        for method, kinds in summary.divergence.items()
        for kind, found in kinds.items()
    ]:
        lines += ["", *table(("difference from 16 bits", "KL (nats)", "same first choice"), rows)]
    if summary.worst_linears:
        lines += ["", *_worst(summary)]
    if whole:
        rows = [
            (part.replace("_", " "), size(value), f"{value / whole:.1%}")
            for part, value in summary.bytes.items()
        ]
        lines += ["", *table(("part of the folder", "size", "share"), rows)]
    if summary.seconds:
        phases = [(phase, f"{seconds:.1f}") for phase, seconds in summary.seconds.items()]
        lines += [
            "",
            *table(("phase", "seconds"), [*phases, ("all", f"{sum(summary.seconds.values()):.1f}")]),
        ]
    return lines


def _worst(summary: _Summary) -> list[str]:
    """Give the table of the linears that lost most; where all were rounded, one column says it."""
    both = summary.method != "rtn"
    head = ("largest errors", "rtn", *([summary.method] if both else []))
    return table(
        head,
        [
            (
                f"layer {row.layer} {row.linear}",
                f"{row.rtn:.4f}",
                *([f"{row.quantized:.4f}"] if both else []),
            )
            for row in summary.worst_linears
        ],
    )
