"""A page in one file that needs no network, no script and no other file: its frame, its style, its tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pixedge.markup import Markup, element
from pixedge.terminal import size

STYLE = """
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
.panel { display: block; width: 100%; overflow: visible; }
.panel text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); }
.axis { stroke: var(--soft); }
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


def whole_page(title: str, sections: Sequence[Markup], style: str = "") -> str:
    """Give an HTML document around sections; ``style`` is added to what all pages share."""
    # the policy makes browsers refuse whatever a page like this never asks for
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", title),
        element("style", Markup(STYLE + style.lstrip("\n"))),
    )
    page = element("html", head, element("body", element("main", *sections)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Give a table whose first column names its rows; it scrolls by itself where it is too wide."""
    body = element("tbody", *(table_row(row) for row in rows))
    return element("div", element("table", element("thead", table_row(head, "th")), body), class_="wide")


def table_row(cells: Sequence[str], kind: str = "td") -> Markup:
    """Give a row; kind is that of its cells, whose first names the row unless all are heads."""
    if kind == "th":
        return element("tr", *(element("th", cell, scope="col") for cell in cells))
    first, *others = cells
    return element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others))


def facts_list(facts: Mapping[str, Any]) -> Markup:
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
