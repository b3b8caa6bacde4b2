"""A profile on the terminal: rows, memory, serving figures, as rich tables."""

import sys
from collections.abc import Mapping
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pixedge.byte_size import write_bytes
from pixedge.profile.serving import METRICS
from pixedge.profile.words import percent, rate, seconds, spread
from pixedge.terminal import printable, put, takes_styles

STAGES = {
    "load": "load",
    "read": "picture decode",
    "resize": "picture resize",
    "encode": "picture encode",
    "prefill": "prompt",
    "first_token": "first token",
    "decode": "answer",
}


def profile_tables(found: Mapping[str, Any]) -> RenderableType:
    """Give all tables of a profile's object."""
    parts: list[RenderableType] = [*_headline(found), _rows(found), *_skipped(found), _memory(found)]
    if found["serving"]:
        parts.append(_serving(found["serving"]))
    return Group(*parts)


def print_wide(what: RenderableType) -> None:
    """Print to standard output, as wide as the terminal, and where there is none without breaking lines."""
    width = None if sys.stdout.isatty() else 200
    colours: Literal["auto"] | None = "auto" if takes_styles(sys.stdout) else None
    console = Console(highlight=False, color_system=colours, width=width)
    with console.capture() as lines:
        console.print(what)
    put(lines.get())


def plain_text(text: str) -> Text:
    """Give text for a table; names come from folders, and their controls are shown and not obeyed."""
    return Text(printable(text))


def _headline(found: Mapping[str, Any]) -> list[Text]:
    model, machine, limits = found["model"], found["machine"], found["limits"]
    weights = "random weights" if model["synthetic"] else "4-bit"
    layers = f"{model['layers']} of {model['whole_layers']} layers" if _cut(found) else ""
    about = ", ".join(
        filter(None, [model["name"], weights, layers, model["device"], f"{model['kv_bits']}-bit cache"])
    )
    where = machine["gpu"] if model["device"].startswith("cuda") else machine["cpu"]
    lines = [
        about,
        f"{where}, {machine['threads']} threads: memory is read at "
        f"{limits['read_bytes_per_second'] / 1e9:.1f} GB/s, products of {model['dtype']} run at "
        f"{limits['product_operations_per_second'] / 1e9:,.0f} GFLOP/s",
    ]
    return [plain_text(line) for line in lines]


def _rows(found: Mapping[str, Any]) -> Table:
    cut = _cut(found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test")
    table.add_column("stage", style="dim")
    for name in ("median", "± spread", "rate", "limit", "share", "bound by", "planned"):
        table.add_column(name, justify="right")
    if cut:
        for name in (f"{found['model']['whole_layers']} layers, reckoned", "rate, reckoned"):
            table.add_column(name, justify="right")
    for row in found["rows"]:
        cells = [
            row["name"],
            STAGES[row["stage"]],
            seconds(row["seconds"]),
            spread(row),
            rate(row["rate"], row["unit"]),
            seconds(row["limit_seconds"]),
            percent(row["share_of_limit"]),
            row["bound"] or "",
            seconds(row["predicted_seconds"]),
        ]
        if cut:
            cells += [seconds(row["reckoned_seconds"]), rate(row["reckoned_rate"], row["unit"])]
        table.add_row(*(plain_text(cell) for cell in cells))
    return table


def _skipped(found: Mapping[str, Any]) -> list[Text]:
    return [plain_text(f"not measured: {each['name']}: {each['reason']}") for each in found["skipped"]]


def _memory(found: Mapping[str, Any]) -> Table:
    gpu = found["memory"]["plan"]["setup"]["device"] == "cuda"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("most memory while")
    for name in (*(("GPU, all", "GPU, torch") if gpu else ()), "process", "planned"):
        table.add_column(name, justify="right")
    for phase in found["memory"]["phases"]:
        keys = (*(("device", "torch") if gpu else ()), "rss", "planned")
        cells = ("not measured" if phase[key] is None else write_bytes(phase[key]) for key in keys)
        table.add_row(plain_text(phase["phase"]), *(plain_text(cell) for cell in cells))
    return table


def _serving(serving: Mapping[str, Any]) -> Table:
    title = (
        f"{serving['completed']} questions, {serving['concurrency']} at a time: "
        f"{serving['request_throughput']:.2f} a second, {serving['output_throughput']:.1f} tokens/s out, "
        f"{serving['total_token_throughput']:.1f} in and out"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=plain_text(title), title_justify="left")
    table.add_column("milliseconds")
    for name in ("mean", "median", "p99"):
        table.add_column(name, justify="right")
    for key, name in METRICS.items():
        values = (serving[f"{kind}_{key}_ms"] for kind in ("mean", "median", "p99"))
        cells = ("" if value is None else f"{value:,.1f}" for value in values)
        table.add_row(Text(f"{key.upper()}  {name}"), *cells)
    return table


def _cut(found: Mapping[str, Any]) -> bool:
    return bool(found["model"]["layers"] != found["model"]["whole_layers"])
