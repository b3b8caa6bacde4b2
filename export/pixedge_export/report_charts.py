"""The plots of the export report, as SVG: errors over depth.

Series differ in colour, line and marker. Colours are classes, which the page defines for a light and for a
dark background.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixedge.charts import nice_step
from pixedge.markup import Markup, element, join

# One panel, in units of which a phone shows about one a pixel.
_WIDTH, _HEIGHT = 320, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40


@dataclass(frozen=True)
class _Series:
    method: str
    style: str  # the class: "rtn" has dashes and squares, "own" a line and circles
    points: Sequence[tuple[int, float]]  # (layer, error)


@dataclass(frozen=True)
class _Scale:
    """Places of layers and errors in every panel, so that panels compare."""

    layers: int
    top: float  # error at the upper edge

    def x(self, layer: int) -> float:
        inside = _WIDTH - _LEFT - _RIGHT
        return _LEFT + inside * (layer / (self.layers - 1) if self.layers > 1 else 0.5)

    def y(self, error: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * error / self.top


def error_panels(rows: Sequence[Mapping[str, Any]], method: str) -> Markup:
    """Plot the relative output error over depth, one panel for each linear, all on one scale.

    rows: "linear_errors" of the report. method: how "quantized" was made; "rtn" is plotted once only. A value
    that is not finite leaves a gap.
    """
    keys = {"rtn": "rtn"} if method == "rtn" else {"rtn": "rtn", method: "quantized"}
    values = [row[key] for row in rows for key in keys.values() if math.isfinite(row[key])]
    largest = max(values, default=0.0) or 1.0
    step = nice_step(largest / 5)
    scale = _Scale(max(row["layer"] for row in rows) + 1, step * math.ceil(largest / step - 1e-9))
    ticks = [step * at for at in range(round(scale.top / step) + 1)]
    panels = []
    for linear in dict.fromkeys(row["linear"] for row in rows):
        mine = [row for row in rows if row["linear"] == linear]
        series = [
            _Series(name, _style(name), [(row["layer"], row[key]) for row in mine])
            for name, key in keys.items()
        ]
        panels.append(element("figure", element("figcaption", linear), _panel(linear, series, scale, ticks)))
    legend = element("p", *(_legend_entry(name) for name in keys), class_="legend")
    return join(legend, element("div", *panels, class_="panels"))


def _panel(linear: str, series: Sequence[_Series], scale: _Scale, ticks: Sequence[float]) -> Markup:
    right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    drawn = []
    for tick in ticks:
        y = f"{scale.y(tick):.2f}"
        drawn.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        drawn.append(
            element("text", f"{tick:g}", x=_LEFT - 6, y=y, dominant_baseline="central", text_anchor="end")
        )
    for layer in range(0, scale.layers, max(1, round(nice_step((scale.layers - 1) / 6)))):
        x = f"{scale.x(layer):.2f}"
        drawn.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        drawn.append(element("text", str(layer), x=x, y=base + 16, text_anchor="middle"))
    drawn.append(element("line", x1=_LEFT, x2=right, y1=base, y2=base, class_="axis"))
    middle = (_TOP + base) / 2
    drawn.append(element("text", "layer", x=(_LEFT + right) / 2, y=_HEIGHT - 8, text_anchor="middle"))
    turned = {"text_anchor": "middle", "transform": f"rotate(-90 12 {middle})"}
    drawn.append(element("text", "relative error", x=12, y=middle, **turned))
    drawn += [_line(one, scale) for one in series]
    label = f"Relative output error of {linear} over {scale.layers} layers"
    box = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}"}
    return element("svg", *drawn, class_="panel", role="img", aria_label=label, **box)


def _line(series: _Series, scale: _Scale) -> Markup:
    """Draw a series: a line for each run of finite values, and a marker for each."""
    runs: list[list[tuple[int, float]]] = [[]]
    for layer, error in series.points:
        if math.isfinite(error):
            runs[-1].append((layer, error))
        else:
            runs.append([])
    drawn = []
    for run in runs:
        places = " ".join(f"{scale.x(layer):.2f},{scale.y(error):.2f}" for layer, error in run)
        if len(run) > 1:
            drawn.append(element("polyline", points=places))
        for layer, error in run:
            title = element("title", f"layer {layer}, {series.method}: {error:.4f}")
            drawn.append(_marker(series.style, scale.x(layer), scale.y(error), title))
    return element("g", *drawn, class_=f"series {series.style}")


def _marker(style: str, x: float, y: float, *children: str) -> Markup:
    """Draw a square or a circle around a place."""
    if style == "rtn":
        return element("rect", *children, x=f"{x - 2.5:.2f}", y=f"{y - 2.5:.2f}", width=5, height=5)
    return element("circle", *children, cx=f"{x:.2f}", cy=f"{y:.2f}", r=2.8)


def _legend_entry(method: str) -> Markup:
    style = _style(method)
    drawn = element(
        "g", element("polyline", points="1,7 39,7"), _marker(style, 20, 7), class_=f"series {style}"
    )
    return element("span", element("svg", drawn, width=40, height=14, aria_hidden="true"), f" {method}")


def _style(method: str) -> str:
    return "rtn" if method == "rtn" else "own"
