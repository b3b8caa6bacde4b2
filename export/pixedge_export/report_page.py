"""export_report.html: the report as one page that needs no network, no script and no other file.

It shows what export_report.json holds and nothing else, so it can be made again from there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pixedge.charts import length_bar, stacked_bar, swatch
from pixedge.markup import Markup, element, join
from pixedge.page import facts_list, table, table_row, whole_page
from pixedge.terminal import size
from pixedge_export.report_charts import error_panels

KINDS = {"text": "on text", "image": "after a picture"}
WORST = 5

_STYLE = """
.series polyline { fill: none; stroke-width: 1.6; }
.rtn polyline { stroke: var(--rtn); stroke-dasharray: 5 3; }
.rtn rect { fill: var(--rtn); }
.own polyline { stroke: var(--own); }
.own circle { fill: var(--own); }
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
    return whole_page(f"{name} in 4 bits", sections, _STYLE)


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
        table(("", "KL (nats)", "same first choice", "positions"), rows),
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
    return table(("linear", "layer", *("rtn", method)[: len(keys)]), cells)


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
        table(head, cells),
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
        table(("part", "bytes", "share"), rows),
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
    rows.append(table_row(("all", f"{all_of_it:,.2f}", "", duration(all_of_it))))
    head = element("thead", table_row(("phase", "seconds", "", ""), "th"))
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
        element("section", element("h2", title.capitalize()), facts_list(data[title]))
        for title in titles
        if title in data
    ]
    return element("div", *lists, class_="facts")


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
