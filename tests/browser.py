"""A headless browser with the server's page in it, and what a person does there."""

import contextlib
import json
import shutil
import time
from pathlib import Path

import pytest

PICTURES = Path(__file__).parents[1] / "models" / "demo" / "pictures"
SHAPES, CHART = str(PICTURES / "shapes.png"), str(PICTURES / "chart.png")

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
_CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")


@contextlib.contextmanager
def started_browser():
    """Start a browser, or skip the test where there is none."""
    reason = "playwright, which drives the browser, is not installed"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no browser to drive: none of {', '.join(_PROGRAMS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=_OPTIONS)
        yield browser
        browser.close()


class Visitor:
    """Opens pages, and notes what they complain of and whom they speak to."""

    def __init__(self, browser, server):
        self.server = server
        self.complaints, self.asked = [], []
        self._browser, self._contexts = browser, []

    def __call__(self, url=None, **options):
        context = self._browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(url or self.server)
        return page

    def leave(self):
        """Close all pages; none may have complained, or spoken to anybody but a server on this machine."""
        for context in self._contexts:
            context.close()
        # a remark of the browser's on forms; and the statuses of refused requests, which tests look at
        harmless = ("Password field is not contained in a form", "Failed to load resource")
        assert [text for text in self.complaints if not any(words in text for words in harmless)] == []
        assert [
            url for url in self.asked if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))
        ] == []


def check(page, name):
    """Give what a function of page_checks.js finds."""
    return page.evaluate(f"{_CHECKS}.{name}()")


def wait_until(page, expression):
    """Wait for an expression to hold; playwright's own way needs eval, which the page's policy forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def configure(page, **values):
    """Fill the settings and apply them."""
    page.click("#open-settings")
    for name, value in values.items():
        page.fill("#" + name.replace("_", "-"), str(value))
    page.click("#apply")
    page.wait_for_selector("#settings:not([open])", state="attached")


def choose(page, *files):
    """Choose picture files."""
    before = page.locator("#pictures li").count()
    page.set_input_files("#files", files)
    page.wait_for_selector(f"#pictures li:nth-child({before + len(files)})")


def ask(page, text, *files, wait=True):
    """Ask with files; give the body of the request."""
    if files:
        choose(page, *files)
    page.fill("#question", text)
    with page.expect_request("**/v1/chat/completions") as sent:
        page.press("#question", "Enter")
    if wait:
        page.wait_for_selector(".turn:last-child .tools")
    return json.loads(sent.value.post_data)


def answer(page):
    """Give the text of the last answer."""
    return page.locator(".turn:last-child .answer p").text_content()
