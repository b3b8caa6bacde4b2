"""Shares of a whole and lengths, as SVG for a page.

Parts of a bar carry the numbers of their rows in the table beside it.
"""

import math
from collections.abc import Mapping, Sequence

from pixedge.markup import Markup, element

PARTS = (
    ("#0072b2", "#fff"),
    ("#d55e00", "#000"),
    ("#009e73", "#000"),
    ("#7570b3", "#000"),
    ("#a6761d", "#000"),
    ("#e7298a", "#000"),
    ("#666666", "#fff"),
    ("#4f8f2f", "#000"),
)
"""Fill and ink of a bar's parts; each fill is seen on white and on near-black."""

_NARROW_PART = 0.04  # of the whole; a number does not fit into a smaller part


def stacked_bar(parts: Mapping[str, int], longest: int | None = None) -> Markup:
    """Show parts of a whole in one bar, wide ones numbered from 1 in the order given.

    longest: the whole of the longest of several bars, which fills the width; None where there is one bar.
    """
    whole = longest or sum(parts.values()) or 1
    drawn, start = [], 0.0
    for number, (name, value) in enumerate(parts.items(), start=1):
        fill, ink = PARTS[(number - 1) % len(PARTS)]
        share = value / whole
        title = element("title", f"{number} {name}: {share:.1%}")
        drawn.append(
            element(
                "rect", title, x=f"{start:.4%}", width=f"{share:.4%}", height="100%", fill=fill, class_="part"
            )
        )
        if share >= _NARROW_PART:
            place = {"x": f"{start + share / 2:.4%}", "y": "50%", "dominant_baseline": "central"}
            drawn.append(element("text", str(number), text_anchor="middle", fill=ink, **place))
        start += share
    label = "Share of each part: " + ", ".join(f"{n} {v / whole:.1%}" for n, v in parts.items())
    return element("svg", *drawn, class_="stack", role="img", aria_label=label, width="100%", height=36)


def swatch(number: int) -> Markup:
    """Give the number of a bar's part on its colour."""
    fill, ink = PARTS[(number - 1) % len(PARTS)]
    return element("span", str(number), class_="swatch", style=f"background:{fill};color:{ink}")


def span_bar(spans: Sequence[tuple[float, float]]) -> Markup:
    """Show when something went on: begins and lengths as shares of all the time, none too short to see."""
    drawn = [
        element("rect", x=f"{begin:.4%}", width=f"{max(length, 0.002):.4%}", height="100%")
        for begin, length in spans
    ]
    return element("svg", *drawn, class_="length", aria_hidden="true", width="100%", height=14)


def length_bar(share: float) -> Markup:
    """Show a length as a share of the longest."""
    bar = element("rect", width=f"{share:.4%}", height="100%", rx=2)
    return element("svg", bar, class_="length", aria_hidden="true", width="100%", height=12)


def nice_step(least: float) -> float:
    """Give the smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
