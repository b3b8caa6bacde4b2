"""The page in a real browser, against a real server."""

import itertools
import json
import re
import shutil
import subprocess
import urllib.request

import pytest

from pixedge.serve.page import load_page
from tests.browser import CHART, SHAPES, answer, ask, choose, configure, wait_until
from tests.serving import Process
from tests.small_exports import small_export


@pytest.fixture
def page(visit):
    page = visit()
    page.wait_for_selector("#send:enabled")
    return page


def figures(page):
    """Give what stands below the last answer, by name."""
    items = page.locator(".turn:last-child .figures div:has(> dt)").all_text_contents()
    return dict(re.fullmatch(r"(\D+?)([\d.,]+(?: \S+)?)", item).groups() for item in items)


def post(server, body):
    """Ask the server without the page."""
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{server}/v1/chat/completions", data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


# --- what is served ----------------------------------------------------------------------------------------


def test_the_policy_lets_nothing_in_but_the_page_itself():
    page = load_page()
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["style-src"])
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy) and "http" not in str(policy)


def test_the_page_names_no_other_place():
    text = load_page().body.decode()
    assert set(re.findall(r"\w+://[^\s'\"%<]*", text)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not an address
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b|\son\w+=", text)
    assert not re.search(r"<(link|script|img|iframe)\b[^>]*\b(src|href)=\"(?!data:)", text)
    assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie", text)


# --- asking ------------------------------------------------------------------------------------------------


def test_ask_about_a_picture_and_go_on(page, small_server):
    configure(page, max_tokens=300)  # frames of 20 ms: 40 tokens may all be in one
    page.evaluate("""() => {
      window.seen = [];
      new MutationObserver(() => {
        const text = document.querySelector('.turn:last-child .answer p')?.textContent ?? '';
        if (text && text !== seen.at(-1)) seen.push(text);
      }).observe(document.getElementById('turns'), { childList: true, subtree: true, characterData: true });
    }""")
    page.evaluate("""() => {
      window.stages = new Set();
      new MutationObserver(() => {
        document.querySelectorAll('.stage').forEach((line) => stages.add(line.textContent));
      }).observe(document.getElementById('turns'), { childList: true, subtree: true, characterData: true });
    }""")
    body = ask(page, "What is <b>this</b>?", SHAPES, CHART)
    # what went on before the first token: the server's own events, with the seconds since the question
    stages = "\n".join(page.evaluate("[...stages]"))
    assert "Reading pictures · 0 s" in stages
    assert "Encoding picture 2 of 2 (128 × 112)" in stages and re.search(r"Prompt: \d+ tokens, \d+ %", stages)
    assert page.locator(".stage").count() == 0
    assert page.locator(".turn .question p").text_content() == "What is <b>this</b>?"
    assert page.locator(".turn .question img").evaluate_all(
        "all => all.map(i => [i.alt, i.naturalWidth])"
    ) == [
        ["shapes.png", 176],
        ["chart.png", 160],
    ]
    # the text grew piece by piece, each the beginning of the next
    seen = page.evaluate("seen")
    assert len(seen) >= 2
    assert all(late.startswith(early) for early, late in itertools.pairwise(seen))
    del body["stream"], body["stream_options"]
    alone = post(small_server, body)
    assert seen[-1] == answer(page) == alone["choices"][0]["message"]["content"]
    shown = figures(page)
    usage = alone["usage"]
    assert shown["Tokens in"] == str(usage["prompt_tokens"])
    assert shown["of pictures"] == str(usage["prompt_tokens_details"]["image_tokens"])
    assert (shown["cached"], shown["Tokens out"]) == ("0", "300")
    for stage in ("Pictures read", "Pictures encoded", "Prompt", "Answer", "First token"):
        assert shown[stage].endswith(" s")

    first = answer(page)
    body = ask(page, "And now?")
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == first
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "image_url", "text"]
    assert int(figures(page)["cached"]) > int(shown["of pictures"])
    assert page.locator(".retry:visible").count() == 1

    second = answer(page)
    page.click(".turn:last-child .retry")
    page.wait_for_selector(".turn:last-child .tools")
    assert answer(page) == second

    page.click("#anew")
    assert page.locator(".turn").count() == 0
    assert page.is_visible("#welcome")
    assert len(ask(page, "Hello")["messages"]) == 1


def test_stop_keeps_what_was_said_and_frees_the_server(page, small_server):
    ask(page, "Go on and on", wait=False)
    wait_until(page, "document.querySelector('.answer p')?.textContent.length > 20")
    page.press("#question", "Escape")
    page.wait_for_selector(".turn .tools")
    assert "Stopped." in page.locator(".turn .note").text_content()
    stopped = answer(page)
    assert len(stopped) > 20
    with urllib.request.urlopen(f"{small_server}/metrics") as response:
        assert re.search(r'cancelled"[^\n]*\} [1-9]', response.read().decode())
    configure(page, max_tokens=5)
    assert ask(page, "And?")["messages"][1] == {"role": "assistant", "content": stopped}
    assert page.locator(".turn:last-child .note").text_content().startswith("Cut off")

    ask(page, "Again", wait=False)
    page.dispatch_event("#stop", "click")  # its five tokens may have come already
    page.wait_for_selector(".turn:last-child .tools")
    assert page.is_visible("#send")


def test_what_the_model_says_is_text(page):
    """The schema makes it say markup."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    configure(page, schema=json.dumps({"const": evil}))
    ask(page, "Say it")
    assert json.loads(answer(page)) == evil
    assert page.locator(".answer img, .answer script").count() == 0


def test_markup_cannot_run(visit):
    page = visit()
    assert (
        page.evaluate("""() => {
      try { document.body.innerHTML = '<b>x</b>'; return 'set'; } catch (error) { return error.name; }
    }""")
        == "TypeError"
    )
    page.evaluate("""() => {
      const script = document.createElement('script');
      script.append('window.ran = true');
      try { document.body.append(script); } catch { }
    }""")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("fetch('http://127.0.0.1:9/').catch((error) => error.name)") == "TypeError"
    assert any("Content Security Policy" in text for text in visit.complaints)
    visit.complaints.clear()


# --- settings ----------------------------------------------------------------------------------------------


def test_settings(page):
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    configure(
        page,
        system="Be brief.",
        temperature=0.7,
        seed=5,
        max_tokens=30,
        picture_size=64,
        schema=json.dumps(schema),
    )
    assert page.locator("#chosen").text_content() == (
        "instructions · temperature 0.7 · seed 5 · up to 30 tokens · pictures to 64 px · JSON schema"
    )
    body = ask(page, "Count", SHAPES)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: body[name] for name in ("temperature", "seed", "max_tokens", "max_image_size")} == {
        "temperature": 0.7,
        "seed": 5,
        "max_tokens": 30,
        "max_image_size": 64,
    }
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert json.loads(answer(page))["n"] in (1, 2)
    assert figures(page)["Seed"] == "5"
    assert figures(page)["of pictures"] == "12"  # 64 x 47 pixels in patches of 16

    page.click("#open-settings")
    page.click("#reset")
    page.click("#apply")
    assert page.locator("#chosen").text_content() == ""


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("schema", "{oops", "The schema is not JSON"),
        ("schema", "[1]", "The schema is a JSON object"),
        ("temperature", "-1", "a number from 0 up"),
        ("seed", "1.5", "a whole number"),
        ("max-tokens", "0", "a whole number of tokens"),
        ("picture-size", "-3", "a whole number of pixels"),
    ],
)
def test_settings_that_cannot_be(page, field, value, words):
    page.click("#open-settings")
    page.fill("#" + field, value)
    page.click("#apply")
    assert words in page.locator("#settings-wrong").text_content()
    assert page.evaluate("document.activeElement.id") == field
    assert page.get_attribute("#" + field, "aria-invalid") == "true"
    page.keyboard.press("Escape")
    assert page.locator("#chosen").text_content() == ""
    page.click("#open-settings")
    assert page.input_value("#" + field) in ("", "0", "1024")


def test_a_key_is_asked_for_and_kept_in_memory_only(tmp_path_factory, visit):
    base = tmp_path_factory.getbasetemp()
    options = ("--model", small_export(base), "--device", "cpu")
    with Process(base, *options, PIXEDGE_API_KEY="sesame") as process:
        page = visit(process.url)
        page.wait_for_selector("#settings[open]")
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_selector("#settings[open] #key")
        assert "the API key is wrong" in page.locator("#problem").text_content()
        page.fill("#key", "sesame")
        page.press("#key", "Enter")
        page.wait_for_selector("#send:enabled")
        configure(page, max_tokens=3)
        ask(page, "Hello")
        assert answer(page)
        page.click("button:has-text('curl')")
        command = page.locator("#command").text_content()
        assert "$PIXEDGE_API_KEY" in command and "sesame" not in command
        kept = "[Object.keys(localStorage), Object.keys(sessionStorage), document.cookie, location.href]"
        assert page.evaluate(kept) == [[], [], "", f"{process.url}/"]
        page.reload()
        page.wait_for_selector("#settings[open]")
        assert page.input_value("#key") == ""


# --- pictures ----------------------------------------------------------------------------------------------

GIVE = """([event, name, type, base64]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name, { type }));
  const target = document.getElementById('question');
  const options = { bubbles: true, cancelable: true };
  if (event === 'paste') {
    target.dispatchEvent(new ClipboardEvent('paste', { ...options, clipboardData: data }));
  } else for (const each of ['dragenter', 'dragover', 'drop'].slice(0, event === 'drop' ? 3 : 2)) {
    target.dispatchEvent(new DragEvent(each, { ...options, dataTransfer: data }));
  }
}"""
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def test_pictures_are_dropped_pasted_ordered_and_removed(page):
    page.evaluate(GIVE, ["drag", "dropped.png", "image/png", DOT])
    assert page.is_visible("#drop")
    page.evaluate(GIVE, ["drop", "dropped.png", "image/png", DOT])
    page.evaluate(GIVE, ["paste", "image.png", "image/png", DOT])
    page.wait_for_selector("#pictures li:nth-child(2)")
    choose(page, SHAPES)
    assert not page.is_visible("#drop")
    names = page.locator("#pictures .name")
    assert names.all_text_contents() == ["dropped.png", "pasted-1.png", "shapes.png"]
    assert page.locator("#pictures .size").all_text_contents()[2].startswith("176 × 128, ")
    page.click("[aria-label='Move earlier: shapes.png']")
    assert names.all_text_contents() == ["dropped.png", "shapes.png", "pasted-1.png"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Move earlier: shapes.png"
    page.click("[aria-label='Remove: dropped.png']")
    assert names.all_text_contents() == ["shapes.png", "pasted-1.png"]
    configure(page, max_tokens=3)
    body = ask(page, "")
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "image_url"]
    assert body["messages"][0]["content"][1]["image_url"]["url"].endswith(DOT)
    assert not page.is_visible("#pictures")


def test_what_is_no_picture_is_said_to_be_none(page):
    page.evaluate(GIVE, ["drop", "notes.txt", "text/plain", "aGVsbG8="])
    assert "notes.txt: not a picture" in page.locator("#problem").text_content()
    page.evaluate(GIVE, ["drop", "fake.png", "image/png", "aGVsbG8="])
    page.wait_for_selector("#pictures .nopreview")
    ask(page, "What?")
    assert (
        "the picture of message 0, part 0 is not a picture"
        in page.locator(".failure[role=alert]:visible").text_content()
    )
    # the question that failed is not sent along with the next one
    configure(page, max_tokens=3)
    assert len(ask(page, "Hello")["messages"]) == 1


def test_a_server_that_went_away(page):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Hello?")
    assert "The server cannot be reached" in page.locator(".failure:visible").text_content()
    page.unroute("**/v1/chat/completions")
    configure(page, max_tokens=3)
    page.click(".retry")
    page.wait_for_selector(".turn.done")
    assert answer(page)


# --- curl --------------------------------------------------------------------------------------------------


def test_the_curl_command_asks_the_same(page, tmp_path):
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("no curl and bash to run the command with")
    odd = tmp_path / "it's $HOME `x`.png"
    shutil.copyfile(SHAPES, odd)
    configure(page, max_tokens=12, system="A \\ back\\nslash, $HOME, `date`, 'quotes' \"too\"")
    ask(page, "What is $1 `here`? \\u00000\\u0000\nEND\n'", odd)
    ask(page, "And?")
    page.click(".turn:last-child button:has-text('curl')")
    command = page.locator("#command").text_content()
    assert odd.name in page.locator("#curl-hint").text_content()
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    reply = json.loads(done.stdout)
    assert reply["choices"][0]["message"]["content"] == answer(page)
    page.click("#curl-copy")
    wait_until(page, "/Copied|Selected/.test(document.getElementById('curl-copy').textContent)")
