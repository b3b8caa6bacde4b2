"""export_report.html: the report as one page that needs no network, no script and no other file.

It shows what export_report.json holds and nothing else, so it can be made again from there.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pixedge.terminal import size
from pixedge_export.markup import Markup, element, join
from pixedge_export.report_charts import error_panels, length_bar, stacked_bar, swatch

KINDS = {"text": "on text", "image": "after a picture"}
WORST = 5

_STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --panel: #f5f6f8; --ink: #1b1e23; --soft: #565d67;
  --line: #cfd4db; --rtn: #b34700; --own: #0067a6; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #14171b; --panel: #1c2026; --ink: #e6e9ed; --soft: #a5adb8; --line: #3a414b;
    --rtn: #f0a04b; --own: #62b8f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--bg); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p, dl { max-width: 48rem; }
.soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem clamp(.5rem, 2vw, 1rem) .25rem 0; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td, .whole { white-space: nowrap; }
thead th { border-bottom: 1px solid var(--line); color: var(--soft); font-weight: 600; }
tbody th { font-weight: inherit; }
td.bar { width: 45%; min-width: 4rem; vertical-align: middle; }
.full { width: 100%; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.panels { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; padding: .6rem; background: var(--panel); border-radius: .4rem; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
.panel { display: block; width: 100%; }
.panel text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); }
.axis { stroke: var(--soft); }
.series polyline { fill: none; stroke-width: 1.6; }
.rtn polyline { stroke: var(--rtn); stroke-dasharray: 5 3; }
.rtn rect { fill: var(--rtn); }
.own polyline { stroke: var(--own); }
.own circle { fill: var(--own); }
.facts { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.legend span { margin-right: 1.5rem; white-space: nowrap; }
.legend svg { vertical-align: middle; }
.stack { display: block; margin: .8rem 0; }
.stack .part { stroke: var(--bg); stroke-width: 1; }
.stack text, .swatch { font-size: 13px; font-weight: 600; }
.swatch { display: inline-block; min-width: 1.5rem; margin-right: .5rem; text-align: center;
  border-radius: .2rem; }
.length { display: block; }
.length rect { fill: var(--own); }
summary { cursor: pointer; }
"""


def render(data: Mapping[str, Any]) -> str:
    """Give the page for the content of export_report.json; parts that an older one lacks are left out."""
    name, method = str(data["source"]["name"]), str(data["recipe"]["method"])
    sections = [
        _headline(name, method, data),
        _errors(data["linear_errors"], method),
        _parity(data["vision_parity"]),
        _bytes(data.get("bytes", {})),
        _seconds(data["seconds"]),
        _facts(data),
    ]
    # the policy makes browsers refuse whatever a page like this never asks for
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", f"{name} in 4 bits"),
        element("style", Markup(_STYLE)),
    )
    page = element("html", head, element("body", element("main", *sections)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _headline(name: str, method: str, data: Mapping[str, Any]) -> Markup:
    measured = data["divergence_from_16_bits"]
    rows = [
        (f"{method} {KINDS.get(kind, kind)}", f"{at['kl']:.4f}", f"{at['top1']:.1%}", f"{at['tokens']:,}")
        for method, kinds in measured.items()
        for kind, at in kinds.items()
    ]
    made = f"{method}, groups of {data['recipe']['group_size']}"
    if parts := data.get("bytes"):
        made += f", {size(sum(parts.values()))}"
    compared = [
        f"{at['kl'] / measured['rtn'][kind]['kl']:.2f} times {KINDS.get(kind, kind)}"
        for kind, at in measured.get(method, {}).items()
        if method != "rtn" and measured.get("rtn", {}).get(kind, {}).get("kl")
    ]
    parts_of_page = [
        element("h1", f"{name} in 4 bits"),
        element("p", made, class_="soft"),
        element("h2", "Difference from 16 bits"),
        _table(("", "KL (nats)", "same first choice", "positions"), rows),
    ]
    if compared:
        parts_of_page.append(
            element("p", f"{method}'s KL divergence against that of rtn: {', '.join(compared)}.")
        )
    parts_of_page.append(
        element(
            "p",
            "Conversations that were kept out of calibration ran through the 16-bit model and through the "
            "4-bit one, layer by layer in the same pass. At each position both give a probability to every "
            "possible next token. The KL divergence says how far these probabilities are apart on average: "
            "0 is no difference. The same first choice says at how many positions the likeliest token is the "
            "same. Text has no picture before it; what comes after a picture is counted by itself, because "
            "4 bits often cost more there. rtn rounds each weight to the nearest value; gptq makes up for "
            "that with calibration data.",
            class_="soft",
        )
    )
    if missing := [KINDS[kind] for kind in KINDS if not any(kind in found for found in measured.values())]:
        parts_of_page.append(element("p", f"Nothing was measured {' or '.join(missing)}: no sample had any."))
    return join(*parts_of_page)


def _errors(rows: Sequence[Mapping[str, Any]], method: str) -> Markup:
    title = element("h2", "Error of each linear over depth")
    if not rows:
        return join(title, element("p", "No linear was measured."))
    worst = sorted(rows, key=lambda row: (math.isfinite(row["quantized"]), -row["quantized"]))[:WORST]
    return join(
        title,
        element(
            "p",
            "How much the output of a linear differs from that with 16-bit weights, relative to its size, on "
            "inputs that were kept out of calibration. Layers count from 0, and all panels have one scale.",
            class_="soft",
        ),
        error_panels(rows, method),
        element("h3", f"Largest errors of {method}"),
        _error_table(worst, method),
        element("details", element("summary", "All linears"), _error_table(rows, method)),
    )


def _error_table(rows: Sequence[Mapping[str, Any]], method: str) -> Markup:
    keys = ("rtn",) if method == "rtn" else ("rtn", "quantized")
    cells = [(row["linear"], str(row["layer"]), *(_number(row[key]) for key in keys)) for row in rows]
    return _table(("linear", "layer", *("rtn", method)[: len(keys)]), cells)


def _parity(rows: Sequence[Mapping[str, Any]]) -> Markup:
    title = element("h2", "Vision encoder by picture size")
    if not rows:
        return join(title, element("p", "No picture size was compared."))
    bounds = {row["graph"]: row["bound"] for row in rows}
    found = {(row["width"], row["height"], row["graph"]): row["error"] for row in rows}
    sizes = sorted({place[:2] for place in found}, key=lambda at: (at[0] * at[1], at))
    cells = [
        (f"{width}\u00a0×\u00a0{height}", *(_small(found.get((width, height, graph))) for graph in bounds))
        for width, height in sizes
    ]
    named = [
        join(_breakable(graph), " (allowed ", element("span", f"{bound:.0e})", class_="whole"))
        for graph, bound in bounds.items()
    ]
    head = ("width\u00a0× height", *named)
    return join(
        title,
        element(
            "p",
            "Largest difference between the ONNX graph's embeddings and those of torch in float32, relative "
            "to the largest embedding.",
            class_="soft",
        ),
        _table(head, cells),
    )


def _breakable(name: str) -> Markup:
    """Let a long file name break behind its underscores."""
    *pieces, last = name.split("_")
    return join(*(join(piece, "_", element("wbr")) for piece in pieces), last)


def _bytes(parts: Mapping[str, int]) -> Markup:
    if not parts:
        return Markup()
    whole = sum(parts.values())
    named = {key.replace("_", " "): value for key, value in parts.items()}
    rows: list[tuple[str, str, str]] = [
        (join(swatch(number), name), f"{value:,}", f"{value / (whole or 1):.1%}")
        for number, (name, value) in enumerate(named.items(), start=1)
    ]
    rows.append(("all", f"{whole:,}", "100.0%"))
    return join(
        element("h2", "Where the bytes went"),
        element("p", "Every file of the folder but pixedge.json and this report.", class_="soft"),
        stacked_bar(named),
        _table(("part", "bytes", "share"), rows),
    )


def _seconds(phases: Mapping[str, float]) -> Markup:
    longest = max(phases.values(), default=0.0) or 1.0
    rows = [
        element(
            "tr",
            element("th", phase, scope="row"),
            element("td", f"{seconds:,.2f}"),
            element("td", length_bar(seconds / longest), class_="bar"),
            element("td", duration(seconds)),
        )
        for phase, seconds in phases.items()
    ]
    all_of_it = sum(phases.values())
    rows.append(_row(("all", f"{all_of_it:,.2f}", "", duration(all_of_it))))
    head = element("thead", _row(("phase", "seconds", "", ""), "th"))
    return join(
        element("h2", "Time by phase"),
        element("div", element("table", head, element("tbody", *rows), class_="full"), class_="wide"),
    )


def duration(seconds: float) -> str:
    """Write a time for people.

    >>> duration(7.14), duration(200), duration(4980)
    ('7.1 s', '3 min 20 s', '1 h 23 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _facts(data: Mapping[str, Any]) -> Markup:
    """List how the folder was made: recipe, calibration, source and machine."""
    titles = ("recipe", "calibration", "source", "machine")
    lists = [
        element("section", element("h2", title.capitalize()), _list(data[title]))
        for title in titles
        if title in data
    ]
    return element("div", *lists, class_="facts")


def _list(facts: Mapping[str, Any]) -> Markup:
    """List names and values; memory in bytes is written for people, and left out where it is unknown."""
    pairs = []
    for key, value in facts.items():
        if key.endswith("_bytes"):
            if value is None:
                continue
            value = size(value)
        pairs.append(element("dt", key.removesuffix("_bytes").replace("_", " ")))
        pairs.append(element("dd", _value(value)))
    return element("dl", *pairs)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Give a table whose first column names its rows; it scrolls by itself where it is too wide."""
    body = element("tbody", *(_row(row) for row in rows))
    return element("div", element("table", element("thead", _row(head, "th")), body), class_="wide")


def _row(cells: Sequence[str], kind: str = "td") -> Markup:
    if kind == "th":
        return element("tr", *(element("th", cell, scope="col") for cell in cells))
    first, *others = cells
    return element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others))
