"""The page with the keyboard, read aloud, on a phone, in the dark: in a browser, in each of its states."""

import pytest

from tests.browser import (
    CHART,
    SHAPES,
    answer,
    ask,
    check,
    choose,
    configure,
    wait_until,
)


def states(page):
    """Bring the page into each of its states, one after the other."""
    page.wait_for_selector("#send:enabled")
    yield "welcome"
    configure(page, max_tokens=40, temperature=1.5, seed=1, picture_size=100, system="x")
    choose(page, SHAPES, CHART, *[SHAPES] * 6)
    yield "pictures chosen"
    ask(page, "What is " + "averyveryverylongword" * 20 + "?")
    yield "answered"
    page.set_input_files("#files", [__file__])
    page.wait_for_selector("#problem:visible")
    yield "complaint"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "3"}, body="{}"),
    )
    ask(page, "Again")
    yield "failed"
    page.click("#open-settings")
    page.fill("#schema", "{")
    page.click("#apply")
    yield "settings"
    page.click("#cancel")
    page.click(".turn:first-child button:has-text('curl')")
    yield "curl"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_every_state_is_there_for_everybody(visit, scheme, width):
    phone = {"is_mobile": True, "has_touch": True} if width < 1000 else {}
    page = visit(viewport={"width": width, "height": 700}, color_scheme=scheme, **phone)
    for state in states(page):
        # text can be read
        found = check(page, "contrast")
        assert len(found) > 5
        assert min(found) >= [4.5], (state, min(found))
        assert min(check(page, "textSizes")) >= 14
        # everything has a name, and what it refers to is there once
        for tag, id, name in check(page, "names"):
            assert (name or "").strip() not in ("", "×", "←", "→"), (state, tag, id)
        ids = check(page, "ids")
        assert len(ids) == len(set(ids))
        assert set(check(page, "described")) <= set(ids)
        # nothing is too small to be hit, or wider than the window
        assert check(page, "smallTargets") == [], state
        assert check(page, "tooWide") == [], state
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(247, 246, 242)" if scheme == "light" else "rgb(20, 23, 26)")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("h1").count() == 1


def test_an_answer_is_told_once_it_is_there(visit):
    page = visit()
    page.wait_for_selector("#send:enabled")
    configure(page, max_tokens=4)
    ask(page, "Hello")
    wait_until(page, "document.getElementById('status').textContent.startsWith('Answer: ')")
    assert answer(page) in page.locator("#status[role=status]").text_content()
    assert page.locator(".answer[aria-busy=false]").count() == 1


def test_with_the_keyboard_alone(visit):
    page = visit()
    page.wait_for_selector("#send:enabled")
    press = page.keyboard.press
    # told to the browser long before the first is opened
    page.on("filechooser", lambda chooser: chooser.set_files([SHAPES, CHART]))

    def back_to(goal):
        for _ in range(12):
            if check(page, "focused") == goal:
                return
            press("Shift+Tab")
        raise AssertionError(f"{goal} cannot be reached")

    # the question has the focus from the start, everything else is reached in the order in which it stands
    assert check(page, "focused") == "question"
    back_to("Skip to the question")
    order = ["open-settings", "welcome-add", "question", "add", "send"]
    for goal in order:
        press("Tab")
        assert check(page, "focused") == goal

    press("Shift+Tab")
    assert check(page, "focused") == "add"
    press("Enter")
    wait_until(
        page, "document.activeElement.id === 'question' && document.querySelector('#pictures li + li')"
    )
    press("Shift+Tab")
    assert check(page, "focused") == "Remove: chart.png"  # the last cannot be moved later
    press("Enter")
    assert check(page, "focused") == "Remove: shapes.png"
    press("Tab")
    assert check(page, "focused") == "question"

    # a dialog takes the focus, keeps it, and gives it back
    back_to("open-settings")
    press("Enter")
    assert check(page, "focused") == "system"
    inside = "document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))"
    for _ in range(12):
        press("Tab")
        assert page.evaluate(inside)
    press("Escape")
    assert check(page, "focused") == "open-settings"

    page.focus("#question")
    page.keyboard.type("one")
    press("Shift+Enter")
    page.keyboard.type("two")
    press("Enter")
    page.wait_for_selector(".turn .question p")
    assert page.locator(".turn .question p").text_content() == "one\ntwo"
    assert check(page, "focused") == "question"
    press("Escape")
    page.wait_for_selector(".turn .tools")
    press("Shift+Tab")
    assert check(page, "focused") == "curl"
