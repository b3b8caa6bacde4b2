"""The plots of the export report: errors over depth."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pixedge.charts import nice_step
from pixedge.markup import Markup, element, join
from pixedge.plots import Axis, Series, legend_entry, panel


def error_panels(rows: Sequence[Mapping[str, Any]], method: str) -> Markup:
    """Plot the relative output error over depth, one panel for each linear, all on one scale.

    rows: "linear_errors" of the report. method: how "quantized" was made; "rtn" is plotted once only. A value
    that is not finite leaves a gap.
    """
    keys = {"rtn": "rtn"} if method == "rtn" else {"rtn": "rtn", method: "quantized"}
    values = [row[key] for row in rows for key in keys.values() if math.isfinite(row[key])]
    up = Axis.up_to("relative error", max(values, default=0.0))
    deepest = max(row["layer"] for row in rows)
    across = Axis("layer", 0, deepest, range(0, deepest + 1, max(1, round(nice_step(deepest / 6)))))
    panels = []
    for linear in dict.fromkeys(row["linear"] for row in rows):
        mine = [row for row in rows if row["linear"] == linear]
        label = f"Relative output error of {linear} over {deepest + 1} layers"
        series = [_series(name, [(row["layer"], row[key]) for row in mine]) for name, key in keys.items()]
        panels.append(element("figure", element("figcaption", linear), panel(label, series, across, up)))
    legend = element("p", *(legend_entry(_series(name, [])) for name in keys), class_="legend")
    return join(legend, element("div", *panels, class_="panels"))


def _series(method: str, errors: Sequence[tuple[int, float]]) -> Series:
    """Give a method its line: "rtn" has dashes and squares, the other a line and circles."""
    points = [(layer, error, f"layer {layer}, {method}: {error:.4f}") for layer, error in errors]
    return Series(method, "rtn" if method == "rtn" else "own", points, square=method == "rtn")
