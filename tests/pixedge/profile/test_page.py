"""The page in a real browser: it stands alone, its plots show the figures, and a phone can read it."""

import importlib.util
import re
import shutil

import pytest

from pixedge.profile.page import render
from pixedge.profile.serving import METRICS
from tests.pixedge.profile.made_up import made_up

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
HOSTILE = "</title></style><script>alert(1)</script>\"' onload='x'"

in_browser = [
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on the path"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path):
    """Open a profile's page; whatever it asks for beside itself, or complains of, fails."""
    pages = []

    def opened(found, width=1280, dark=False):
        file = tmp_path / "profile.html"
        file.write_text(render(found), encoding="utf-8")
        scheme = "dark" if dark else "light"
        page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        told = []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url))
        page.goto(file.as_uri())
        pages.append((page, told, file.as_uri()))
        return page

    yield opened
    for page, told, address in pages:
        page.close()
        assert told == [address]


def boxes(page, selector):
    return [element.bounding_box() for element in page.query_selector_all(selector)]


@pytest.mark.parametrize("width", [1280, 390, 320])
@pytest.mark.parametrize("layers", [4, 2])
class TestInABrowser:
    pytestmark = in_browser

    def test_nothing_is_wider_than_the_screen(self, show, width, layers):
        page = show(made_up(layers), width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for box in boxes(page, "svg.panel, svg.stack, h2, p, .full"):
            assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5, box

    def test_text_in_plots_can_be_read_and_does_not_overlap(self, show, width, layers):
        page = show(made_up(layers), width)
        panels = page.query_selector_all("svg.panel")
        assert len(panels) == 4
        for panel in panels:
            texts = [text.bounding_box() for text in panel.query_selector_all("text")]
            for at, one in enumerate(texts):
                assert one["height"] >= 9 and one["x"] >= 0 and one["x"] + one["width"] <= width
                for other in texts[at + 1 :]:
                    apart = (
                        one["x"] + one["width"] <= other["x"] + 1
                        or other["x"] + other["width"] <= one["x"] + 1
                        or one["y"] + one["height"] <= other["y"] + 1
                        or other["y"] + other["height"] <= one["y"] + 1
                    )
                    assert apart, (one, other)

    def test_bars_are_as_long_as_the_shares_say(self, show, width, layers):
        found = made_up(layers)
        page = show(found, width)
        table, *_ = page.query_selector_all("table.full")
        rows = table.query_selector_all("tbody tr")
        for row, line in zip(found["rows"], rows, strict=True):
            assert line.query_selector("th").inner_text() == row["name"]
            bar = line.query_selector("td.bar rect")
            assert (bar is None) == (row["share_of_limit"] is None)
            if bar is not None:
                whole = line.query_selector("td.bar svg").bounding_box()["width"]
                share = bar.bounding_box()["width"] / whole
                assert share == pytest.approx(min(row["share_of_limit"], 1), abs=0.02)

    def test_what_is_reckoned_is_said_to_be(self, show, width, layers):
        page = show(made_up(layers), width)
        page.click("summary")
        text = page.inner_text("main")
        assert ("reckoned" in text) == (layers != 4)
        assert ("2 of 4 decoder layers were made" in text) == (layers != 4)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on the path")
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed")
def test_memory_is_drawn_to_one_scale_and_stages_stand_where_they_were(show):
    page = show(made_up(), dark=True)
    planned, measured = (
        sum(box["width"] for box in (part.bounding_box() for part in stack.query_selector_all("rect")))
        for stack in page.query_selector_all("svg.stack")
    )
    plan = sum(value for key, value in made_up()["memory"]["plan"]["device"].items() if key != "total")
    assert measured / planned == pytest.approx((370 << 20) / plan, rel=0.02)
    lanes = page.query_selector_all("table.lane tbody tr")
    assert [lane.query_selector("th").inner_text() for lane in lanes] == [
        *("read", "resize and tokenise", "encode", "prefill", "decode")
    ]
    starts = [lane.query_selector("rect").bounding_box()["x"] for lane in lanes]
    assert starts == sorted(starts) and len(lanes[-1].query_selector_all("rect")) == 2


def test_the_page_says_what_the_object_does():
    found = made_up(skipped=[{"name": "tg128 @ d9", "reason": "9 tokens, and there is room for 8"}])
    page = render(found)
    assert "tg128 @ d9 was not measured: 9 tokens, and there is room for 8." in page
    for text in (*(row["name"] for row in found["rows"]), *METRICS.values(), "10.0 GB/s", "1,000 GFLOP/s"):
        assert text in page
    without = render(made_up(serving=None, timeline=[]))
    assert "Several questions at a time" not in without and "No question was recorded." in without


def test_a_limit_far_above_is_told_and_one_near_is_drawn():
    near = render(made_up())
    assert near.count('class="series limit"') == 5  # four panels and the legend
    far = made_up()
    for row in far["rows"]:
        if row["share_of_limit"]:
            row["share_of_limit"] /= 50
    page = render(far)
    assert page.count('class="series limit"') == 1 and page.count("The limit lies above: ") == 4


def test_memory_of_a_gpu_and_memory_that_nobody_could_tell():
    found = made_up()
    for phase in found["memory"]["phases"]:
        phase["rss"] = None
    assert "not measured" in render(found) and "As measured" not in render(found)
    found["memory"]["plan"]["setup"]["device"] = "cuda"
    for at, phase in enumerate(found["memory"]["phases"]):
        phase |= {"torch": 1 << 30, "device": (at + 2) << 30}
    page = render(found)
    assert "As measured: 9.00 GiB" in page and "GPU, torch" in page


def test_names_stay_text():
    found = made_up()
    found["model"]["name"] = found["machine"]["cpu"] = found["rows"][3]["name"] = HOSTILE
    page = render(found)
    assert "<script" not in page and "onload='x'" not in re.sub(r"&[^;]+;", "", page).replace("&#x27;", "")
