"""Lines over an axis, as SVG for a page: a panel that a phone shows whole.

Series differ in colour, line and marker. Colours are classes, which the page defines for a light and for a
dark background.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pixedge.charts import nice_step
from pixedge.markup import Markup, element

# In units of which a phone shows about one a pixel.
_WIDTH, _HEIGHT = 320, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40


@dataclass(frozen=True)
class Series:
    """Points (x, y, what is told of it) of one name.

    style: the class. square: markers are squares, not circles.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float, str]]
    square: bool = False


@dataclass(frozen=True)
class Axis:
    """Values between the edges of a panel, with those that are written at it."""

    name: str
    low: float
    high: float
    ticks: Sequence[float]

    @classmethod
    def up_to(cls, name: str, largest: float, count: int = 5) -> "Axis":
        """Give an axis from 0 to at least ``largest``, with about ``count`` steps of 1, 2 or 5."""
        step = nice_step((largest or 1.0) / count)
        steps = math.ceil((largest or 1.0) / step - 1e-9)
        return cls(name, 0, step * steps, [step * at for at in range(steps + 1)])

    def share(self, value: float) -> float:
        """Return where between the edges a value lies; the middle where they are one."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def panel(label: str, series: Sequence[Series], across: Axis, up: Axis) -> Markup:
    """Plot series; a value that is not finite leaves a gap. label: what one hears who does not see."""
    right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    drawn = []
    for tick in up.ticks:
        y = f"{_y(up, tick):.2f}"
        drawn.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        drawn.append(
            element("text", _tick(tick), x=_LEFT - 6, y=y, dominant_baseline="central", text_anchor="end")
        )
    for tick in across.ticks:
        x = f"{_x(across, tick):.2f}"
        drawn.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        drawn.append(element("text", _tick(tick), x=x, y=base + 16, text_anchor="middle"))
    drawn.append(element("line", x1=_LEFT, x2=right, y1=base, y2=base, class_="axis"))
    middle = (_TOP + base) / 2
    drawn.append(element("text", across.name, x=(_LEFT + right) / 2, y=_HEIGHT - 8, text_anchor="middle"))
    turned = {"text_anchor": "middle", "transform": f"rotate(-90 12 {middle})"}
    drawn.append(element("text", up.name, x=12, y=middle, **turned))
    drawn += [_line(one, across, up) for one in series]
    box = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}"}
    return element("svg", *drawn, class_="panel", role="img", aria_label=label, **box)


def legend_entry(series: Series) -> Markup:
    """Show a series' line and marker beside its name."""
    drawn = element(
        "g",
        element("polyline", points="1,7 39,7"),
        _marker(series.square, 20, 7),
        class_=f"series {series.style}",
    )
    return element("span", element("svg", drawn, width=40, height=14, aria_hidden="true"), f" {series.name}")


def _tick(value: float) -> str:
    """Write a value so that it fits beside the axis.

    >>> _tick(0.05), _tick(2048), _tick(15_000)
    ('0.05', '2048', '15k')
    """
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _x(axis: Axis, value: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * axis.share(value)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * axis.share(value)


def _line(series: Series, across: Axis, up: Axis) -> Markup:
    """Draw a series: a line for each run of finite values, and a marker for each."""
    runs: list[list[tuple[float, float, str]]] = [[]]
    for point in series.points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        else:
            runs.append([])
    drawn = []
    for run in runs:
        if len(run) > 1:
            places = " ".join(f"{_x(across, x):.2f},{_y(up, y):.2f}" for x, y, _ in run)
            drawn.append(element("polyline", points=places))
        for x, y, told in run:
            drawn.append(_marker(series.square, _x(across, x), _y(up, y), element("title", told)))
    return element("g", *drawn, class_=f"series {series.style}")


def _marker(square: bool, x: float, y: float, *children: str) -> Markup:
    """Draw a square or a circle around a place."""
    if square:
        return element("rect", *children, x=f"{x - 2.5:.2f}", y=f"{y - 2.5:.2f}", width=5, height=5)
    return element("circle", *children, cx=f"{x:.2f}", cy=f"{y:.2f}", r=2.8)
