"""The plots of a profile's page: speed over context, over answers at a time, over a prompt's length."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixedge.markup import Markup, element, join
from pixedge.plots import Axis, Series, legend_entry, panel
from pixedge.profile.words import digits

_FAR = 4.0
"""A limit that lies so many times above all that was measured would flatten it; it is told, not drawn."""

Row = Mapping[str, Any]


def speed_plots(found: Mapping[str, Any]) -> Markup:
    """Give the panels; reckoned rates are drawn where not all layers were made."""
    rows = found["rows"]
    decode = [row for row in rows if row["stage"] == "decode"]
    panels = [
        _panel(
            "An answer's speed over what stands before it",
            [row for row in decode if row["answers"] == 1],
            lambda row: row["context"],
            "tokens before the answer",
        ),
        _panel(
            "Speed of all answers over how many there are",
            [row for row in decode if row["context"] == 0],
            lambda row: row["answers"],
            "answers at a time",
        ),
        _panel(
            "A prompt's speed over its length",
            [row for row in rows if row["stage"] == "prefill"],
            lambda row: row["tokens"],
            "tokens of the prompt",
        ),
        _panel(
            "Encoding over the picture's size",
            [row for row in rows if row["stage"] == "encode"],
            lambda row: row["width"] * row["height"] / 1e6,
            "megapixels",
        ),
    ]
    kinds = (("measured", "own"), ("limit", "limit"))
    legend = element(
        "p",
        *(legend_entry(Series(name, style, [], square=style == "limit")) for name, style in kinds),
        class_="legend",
    )
    return join(element("h2", "Speed"), legend, element("div", *filter(None, panels), class_="panels"))


def _panel(title: str, rows: Sequence[Row], across: Callable[[Row], float], name: str) -> Markup:
    """Plot rates and their limits; nothing where no row has any."""
    rows = sorted((row for row in rows if row["rate"]), key=across)
    if not rows:
        return Markup()
    unit = f"{rows[0]['unit']}/s"
    measured = [(across(row), row["rate"]) for row in rows]
    limits = [(across(row), row["rate"] / row["share_of_limit"]) for row in rows if row["share_of_limit"]]
    highest = max(y for _, y in measured)
    near = [(x, y) for x, y in limits if y <= _FAR * highest]
    series = [Series("measured", "own", [(x, y, f"{x:g}: {digits(y)} {unit}") for x, y in measured])]
    note = ""
    if len(near) == len(limits):
        points = [(x, y, f"{x:g}: at most {digits(y)} {unit}") for x, y in limits]
        series.append(Series("limit", "limit", points, square=True))
    else:
        least, most = (digits(edge(y for _, y in limits)) for edge in (min, max))
        note = f"The limit lies above: {least if least == most else f'{least} to {most}'} {unit}."
    drawn = panel(
        f"{title}: {', '.join(f'{digits(y)} {unit} at {x:g}' for x, y in measured)}",
        series,
        Axis.up_to(name, max(x for x, _ in measured), 4),
        Axis.up_to(unit, max(y for one in series for _, y, _ in one.points)),
    )
    caption = element("figcaption", title)
    return element("figure", caption, drawn, *([element("small", note, class_="soft")] if note else []))
