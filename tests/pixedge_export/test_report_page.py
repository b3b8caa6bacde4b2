"""The page of the report, read back by an HTML parser: structure, numbers, places in the plots, safety."""

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from pixedge.charts import PARTS
from pixedge_export.report_page import duration, render

LINEARS = [
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
]
VOID = {"meta", "wbr"}


@dataclass
class Node:
    name: str
    attributes: dict[str, str]
    children: list["Node | str"] = field(default_factory=list)

    def all(self, name: str, class_: str | None = None) -> Iterator["Node"]:
        for child in self.children:
            if isinstance(child, Node):
                classes = child.attributes.get("class", "").split()
                if child.name == name and (class_ is None or class_ in classes):
                    yield child
                yield from child.all(name, class_)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def number(self, key: str) -> float:
        return float(self.attributes[key])


class Parser(HTMLParser):
    """Builds the tree; a tag that is not closed, or closed where another is open, fails."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> closes nothing in HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Node:
    parser = Parser()
    parser.feed(page)
    parser.close()
    (root,) = parser.open
    return root


def report(layers: int = 4, method: str = "gptq") -> dict:
    """A report whose every error is different."""
    rows = [
        {"layer": layer, "linear": linear, "rtn": 0.1 + 0.01 * at + 0.0013 * layer, "quantized": 0.0}
        for layer in range(layers)
        for at, linear in enumerate(LINEARS)
    ]
    for row in rows:
        row["quantized"] = row["rtn"] * (1 if method == "rtn" else 0.37)
    measured = {
        "rtn": {
            "text": {"tokens": 1069, "kl": 0.25, "top1": 0.875},
            "image": {"tokens": 20_580, "kl": 0.5, "top1": 0.75},
        },
        "gptq": {
            "text": {"tokens": 1069, "kl": 0.0625, "top1": 0.9375},
            "image": {"tokens": 20_580, "kl": 0.1, "top1": 0.9},
        },
    }
    return {
        "source": {"name": "tiny", "layout": "mistral", "sha256": "0123456789abcdef" * 4},
        "recipe": {"method": method, "group_size": 128, "damping": 0.01, "act_order": True},
        "calibration": {"built_in": False, "samples": 77, "tokens": 11_061, "held_out_samples": 20},
        "divergence_from_16_bits": {name: measured[name] for name in dict.fromkeys(("rtn", method))},
        "linear_errors": rows,
        "vision_parity": [
            {"graph": "vision_encoder_cpu.onnx", "height": 256, "width": 16, "error": 6.52e-7, "bound": 1e-4},
            {"graph": "vision_encoder_cpu.onnx", "height": 16, "width": 32, "error": 1.13e-6, "bound": 1e-4},
            {"graph": "vision_encoder.onnx", "height": 16, "width": 32, "error": 4.76e-4, "bound": 1e-2},
        ],
        "bytes": {"quantized_weights": 6_000_000, "scales": 3_999_999, "norms": 1},
        "seconds": {"samples": 0.11, "layers": 4321.5},
        "machine": {"cpu": "Some CPU", "memory_bytes": 25_276_502_016, "gpu": None, "gpu_memory_bytes": None},
    }


def rows_of(root: Node, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with ``first``."""
    for table in root.all("table"):
        found = [
            [cell.text.replace("\xa0", " ") for cell in row.children if isinstance(cell, Node)]
            for row in table.all("tr")
        ]
        if found[0][0] == first:
            return found
    raise AssertionError(f"no table {first!r}")


def panels(root: Node) -> dict[str, Node]:
    found = {}
    for figure in root.all("figure"):
        (caption,), (panel,) = figure.all("figcaption"), figure.all("svg")
        found[caption.text] = panel
    return found


def errors_by_ticks(panel: Node, series: str) -> dict[float, float]:
    """Read the plot as a person does: errors by layer, from the places of markers and tick labels."""
    texts = [text for text in panel.all("text") if re.fullmatch(r"[\d.]+", text.text)]
    upright = [text for text in texts if text.attributes["text-anchor"] == "end"]
    flat = [text for text in texts if text.attributes["text-anchor"] == "middle"]
    (y0, e0), (y1, e1) = ((text.number("y"), float(text.text)) for text in (upright[0], upright[-1]))
    assert e0 == 0 and e1 > 0 and y1 < y0
    found = {}
    (group,) = panel.all("g", series)
    for marker in [*group.all("rect"), *group.all("circle")]:
        if marker.name == "rect":
            x = marker.number("x") + marker.number("width") / 2
            y = marker.number("y") + marker.number("height") / 2
        else:
            x, y = marker.number("cx"), marker.number("cy")
        if len(flat) == 1:
            assert x == flat[0].number("x")
            layer = float(flat[0].text)
        else:
            (x0, l0), (x1, l1) = ((text.number("x"), float(text.text)) for text in (flat[0], flat[-1]))
            layer = l0 + (l1 - l0) * (x - x0) / (x1 - x0)
        assert abs(layer - round(layer)) < 0.01
        found[round(layer)] = e0 + (e1 - e0) * (y - y0) / (y1 - y0)
    return found


@pytest.mark.parametrize("layers", [1, 2, 4, 40])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_every_layer_of_every_linear_stands_where_its_error_is(layers: int, method: str) -> None:
    data = report(layers, method)
    found = panels(parse(render(data)))
    assert list(found) == LINEARS
    upright = set()
    for linear, panel in found.items():
        keys = {"rtn": "rtn"} if method == "rtn" else {"rtn": "rtn", "own": "quantized"}
        assert len(list(panel.all("g"))) == len(keys)
        for series, key in keys.items():
            expected = {row["layer"]: row[key] for row in data["linear_errors"] if row["linear"] == linear}
            assert errors_by_ticks(panel, series) == pytest.approx(expected, abs=2e-5)
            (group,) = panel.all("g", series)
            # the line goes through the markers
            points = [line.attributes["points"].split() for line in group.all("polyline")]
            assert [len(point) for point in points] == ([layers] if layers > 1 else [])
        box = [float(value) for value in panel.attributes["viewbox"].split()]
        marks = [*panel.all("rect"), *panel.all("circle"), *panel.all("text")]
        places = [(mark.attributes.get("cx") or mark.attributes["x"], mark) for mark in marks]
        assert all(0 <= float(x) <= box[2] for x, _ in places)
        upright.add(tuple(t.text for t in panel.all("text") if t.attributes["text-anchor"] == "end"))
        assert {"layer", "relative error"} <= {text.text for text in panel.all("text")}
    assert len(upright) == 1, "the panels have different scales"


def test_a_known_error_has_a_known_place() -> None:
    """The largest error is 0.5, so the axis ends there; half of it is half way up."""
    data = report(2)
    for row in data["linear_errors"]:
        row["rtn"], row["quantized"] = 0.5, 0.25
    panel = panels(parse(render(data)))["mlp.up_proj"]
    ticks = {t.text: t.number("y") for t in panel.all("text") if t.attributes["text-anchor"] == "end"}
    assert list(ticks) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    (own,) = panel.all("g", "own")
    for circle in own.all("circle"):
        assert circle.number("cy") == pytest.approx((ticks["0"] + ticks["0.5"]) / 2, abs=0.01)
    assert [c.text for c in own.all("circle")] == ["layer 0, gptq: 0.2500", "layer 1, gptq: 0.2500"]
    (rtn,) = panel.all("g", "rtn")
    assert all(
        r.number("y") + r.number("height") / 2 == pytest.approx(ticks["0.5"], abs=0.01)
        for r in rtn.all("rect")
    )


def test_methods_differ_in_line_and_marker_and_the_legend_shows_it() -> None:
    root = parse(render(report()))
    (legend,) = root.all("p", "legend")
    entries = [entry for entry in legend.children if isinstance(entry, Node)]
    assert [entry.text.strip() for entry in entries] == ["rtn", "gptq"]
    assert [len(list(entry.all("rect"))) for entry in entries] == [1, 0]
    assert [len(list(entry.all("circle"))) for entry in entries] == [0, 1]
    (style,) = root.all("style")
    assert re.search(r"\.rtn polyline \{[^}]*stroke-dasharray", style.text)
    assert not re.search(r"\.own polyline \{[^}]*stroke-dasharray", style.text)


def test_values_that_are_not_finite_leave_a_gap() -> None:
    data = report(5)
    data["linear_errors"][2 * 7]["quantized"] = math.nan
    data["linear_errors"][2 * 7]["rtn"] = math.inf
    root = parse(render(data))
    panel = panels(root)[LINEARS[0]]
    assert errors_by_ticks(panel, "own").keys() == {0, 1, 3, 4}
    (own,) = panel.all("g", "own")
    assert [len(line.attributes["points"].split()) for line in own.all("polyline")] == [2, 2]
    assert "nan" not in "".join(line.attributes["points"] for line in root.all("polyline"))
    # and it is the first of the worst
    assert rows_of(root, "linear")[1] == [LINEARS[0], "2", "not finite", "not finite"]


def test_errors_of_nothing_at_all() -> None:
    data = report(1)
    for row in data["linear_errors"]:
        row["rtn"] = row["quantized"] = 0.0
    assert errors_by_ticks(panels(parse(render(data)))["mlp.up_proj"], "own") == {0: 0.0}


def test_the_numbers_are_those_of_the_json() -> None:
    data = report()
    root = parse(render(data))
    assert rows_of(root, "") == [
        ["", "KL (nats)", "same first choice", "positions"],
        ["rtn on text", "0.2500", "87.5%", "1,069"],
        ["rtn after a picture", "0.5000", "75.0%", "20,580"],
        ["gptq on text", "0.0625", "93.8%", "1,069"],
        ["gptq after a picture", "0.1000", "90.0%", "20,580"],
    ]
    assert (
        "gptq's KL divergence against that of rtn: 0.25 times on text, 0.20 times after a picture."
        in root.text
    )
    worst = sorted(data["linear_errors"], key=lambda row: -row["quantized"])[:5]
    assert rows_of(root, "linear")[1:] == [
        [row["linear"], str(row["layer"]), f"{row['rtn']:.4f}", f"{row['quantized']:.4f}"] for row in worst
    ]
    (details,) = root.all("details")
    assert rows_of(details, "linear")[1:] == [
        [row["linear"], str(row["layer"]), f"{row['rtn']:.4f}", f"{row['quantized']:.4f}"]
        for row in data["linear_errors"]
    ]
    assert rows_of(root, "width × height") == [
        ["width × height", "vision_encoder_cpu.onnx (allowed 1e-04)", "vision_encoder.onnx (allowed 1e-02)"],
        ["32 × 16", "1.1e-06", "4.8e-04"],
        ["16 × 256", "6.5e-07", ""],
    ]
    assert rows_of(root, "part") == [
        ["part", "bytes", "share"],
        ["1quantized weights", "6,000,000", "60.0%"],
        ["2scales", "3,999,999", "40.0%"],
        ["3norms", "1", "0.0%"],
        ["all", "10,000,000", "100.0%"],
    ]
    assert rows_of(root, "phase") == [
        ["phase", "seconds", "", ""],
        ["samples", "0.11", "", "0.1 s"],
        ["layers", "4,321.50", "", "1 h 12 min"],
        ["all", "4,321.61", "", "1 h 12 min"],
    ]
    facts = {}
    for section in root.all("section"):
        terms, values = ([node.text for node in section.all(name)] for name in ("dt", "dd"))
        (title,) = section.all("h2")
        facts[title.text] = dict(zip(terms, values, strict=True))
    assert facts == {
        "Recipe": {"method": "gptq", "group size": "128", "damping": "0.01", "act order": "yes"},
        "Calibration": {"built in": "no", "samples": "77", "tokens": "11,061", "held out samples": "20"},
        "Source": {"name": "tiny", "layout": "mistral", "sha256": "0123456789abcdef" * 4},
        "Machine": {"cpu": "Some CPU", "memory": "25.3 GB", "gpu": "none"},
    }
    (headline,) = root.all("h1")
    assert headline.text == "tiny in 4 bits" and "gptq, groups of 128, 10.0 MB" in root.text


def share(text: str) -> float:
    return float(text.removesuffix("%"))


def test_the_bars_are_as_long_as_the_numbers_say() -> None:
    root = parse(render(report()))
    (stack,) = root.all("svg", "stack")
    parts = list(stack.all("rect"))
    assert [share(part.attributes["width"]) for part in parts] == pytest.approx([60, 39.99999, 0], abs=1e-3)
    assert [share(part.attributes["x"]) for part in parts] == pytest.approx([0, 60, 100], abs=1e-3)
    assert [text.text for text in stack.all("text")] == ["1", "2"], "a number does not fit into a thin part"
    assert [next(part.all("title")).text for part in parts][1] == "2 scales: 40.0%"
    lengths = [share(bar.attributes["width"]) for svg in root.all("svg", "length") for bar in svg.all("rect")]
    assert lengths == pytest.approx([100 * 0.11 / 4321.5, 100], abs=1e-3)


def test_rounding_alone_is_one_method() -> None:
    root = parse(render(report(3, "rtn")))
    assert [row[0] for row in rows_of(root, "")[1:]] == ["rtn on text", "rtn after a picture"]
    assert "KL divergence against that of rtn" not in root.text
    assert rows_of(root, "linear")[0] == ["linear", "layer", "rtn"]
    (legend,) = root.all("p", "legend")
    assert legend.text.strip() == "rtn"


@pytest.mark.parametrize(("kind", "sentence"), [("image", "after a picture"), ("text", "on text")])
def test_a_kind_without_positions(kind: str, sentence: str) -> None:
    data = report()
    for kinds in data["divergence_from_16_bits"].values():
        del kinds[kind]
    root = parse(render(data))
    assert f"Nothing was measured {sentence}: no sample had any." in root.text
    assert len(rows_of(root, "")) == 3


def test_what_an_older_report_lacks_and_what_was_not_measured_is_left_out() -> None:
    data = report()
    del data["bytes"], data["machine"]
    data |= {"linear_errors": [], "vision_parity": [], "divergence_from_16_bits": {}, "seconds": {}}
    titles = [title.text for title in parse(render(data)).all("h2")]
    assert "Where the bytes went" not in titles and "Machine" not in titles
    assert "No linear was measured." in render(data) and "No picture size was compared." in render(data)


def test_a_perfect_or_broken_divergence_is_no_division_by_zero() -> None:
    data = report()
    data["divergence_from_16_bits"]["rtn"]["text"]["kl"] = 0.0
    assert "against that of rtn: 0.20 times after a picture." in parse(render(data)).text


def test_it_can_be_made_again_from_the_file() -> None:
    data = report()
    before = copy.deepcopy(data)
    assert render(json.loads(json.dumps(data))) == render(data)
    assert data == before


HOSTILE = "</title></style><script>alert(1)</script>\"' onload='x' <img src=http://evil.example/a.png>"


def hostile(value: object) -> object:
    """The report with text from a stranger wherever there is text, and in every name."""
    if isinstance(value, dict):
        return {f"{key}{HOSTILE}": hostile(item) for key, item in value.items()}
    return HOSTILE if isinstance(value, str) else value


def test_names_stay_text() -> None:
    data = report(2)
    for row in data["linear_errors"]:
        row["linear"] += HOSTILE
    for row in data["vision_parity"]:
        row["graph"] += HOSTILE
    data["source"]["name"] = data["source"]["layout"] = HOSTILE
    data["recipe"] = {**hostile(data["recipe"]), "method": HOSTILE, "group_size": HOSTILE}
    measured = data["divergence_from_16_bits"].values()
    data["divergence_from_16_bits"] = {
        f"{number}{HOSTILE}": {f"{kind}{HOSTILE}": found for kind, found in kinds.items()}
        for number, kinds in enumerate(measured)
    }
    for key in ("calibration", "machine", "seconds", "bytes"):
        data[key] = hostile(data[key])
    root = parse(render(data))
    nodes = [node.name for node in walk(root)]
    assert set(nodes) == {node.name for node in walk(parse(render(report(2))))}
    (headline,) = root.all("h1")
    assert headline.text == f"{HOSTILE} in 4 bits"
    assert_nothing_leads_out(root)


def walk(node: Node) -> Iterator[Node]:
    for child in node.children:
        if isinstance(child, Node):
            yield child
            yield from walk(child)


def assert_nothing_leads_out(root: Node) -> None:
    allowed = {"aria-label", "style", "content", "class"}
    for node in walk(root):
        assert node.name not in {"script", "link", "img", "image", "iframe", "object", "use", "a", "base"}
        for key, value in node.attributes.items():
            assert not key.startswith("on") and key not in {"src", "href", "xlink:href", "srcset"}
            assert key in allowed or "//" not in value
    (style,) = root.all("style")
    assert not re.search(r"url\(|@import|@font-face|//", style.text)


@pytest.mark.parametrize("layers", [1, 40])
def test_the_page_stands_alone_and_fits_a_phone(layers: int) -> None:
    page = render(report(layers))
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">') and page.endswith("</html>\n")
    root = parse(page)
    assert_nothing_leads_out(root)
    metas = [meta.attributes for meta in root.all("meta")]
    assert metas[0] == {"charset": "utf-8"}
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    policy = next(meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    # what is wide scrolls by itself or shrinks
    assert all(
        node.attributes["class"] == "wide"
        for node in walk(root)
        for t in node.children
        if isinstance(t, Node) and t.name == "table"
    )
    for svg in root.all("svg"):
        assert svg.attributes.get("role") == "img" or svg.attributes.get("aria-hidden") == "true"
    assert len(page) < 200_000


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb or #rgb as WCAG 2 defines it."""
    digits = colour.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    values = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark() -> None:
    """WCAG 2 AA: 4.5 for text, 3 for what is drawn."""
    (style,) = parse(render(report(1))).all("style")
    palettes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in style.text.split("@media")]
    assert "prefers-color-scheme: dark" in style.text and len(palettes) == 2
    for palette in palettes:
        assert palette.keys() == {"bg", "panel", "ink", "soft", "line", "rtn", "own"}
        for ground in ("bg", "panel"):
            for text in ("ink", "soft", "rtn", "own"):
                assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
        for fill, _ in PARTS:
            assert contrast(fill, palette["bg"]) >= 3, fill
    for fill, ink in PARTS:
        assert contrast(fill, ink) >= 4.5, fill


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
