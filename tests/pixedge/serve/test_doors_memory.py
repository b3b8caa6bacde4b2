"""What refused requests leave behind: nothing.

A body's bytes were given back while its text, four bytes a character with one emoji in it, still waited: 14
requests of 60 MiB took 4.3 GB under a limit of 1 GiB. And an error that was kept in a variable of a frame of
its own traceback held the body until a full collection: 2.4 GB after 15 requests that were refused.
"""

import gc
import http.client
import json
import re
import threading
import tracemalloc
from pathlib import Path

import pytest

from pixedge.errors import PixedgeError
from pixedge.serve.body_json import JsonBody
from pixedge.serve.errors import Refusal
from tests.attack.bodies import EMOJI, MIB, bodies, encoded, question
from tests.doors import data_url, png, small_model
from tests.serving import CHAT, Process, serving, wait_for
from tests.small_exports import small_export

SMALL = bodies(MIB)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.getbasetemp())


def post(port, body):
    """Send a body; give the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", CHAT, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (BrokenPipeError, ConnectionResetError):  # refused while it was still being sent
        return 413
    finally:
        connection.close()


def test_no_refusal_is_kept_by_its_own_traceback(model):
    """With the collector off, everything that a refused request held is gone when it is answered."""
    failing = {"regex": "[a-z]{40}", "type": "regex"}
    with serving(model) as server:
        post(server.port, encoded(question()))
        gc.collect()
        gc.disable()
        try:
            for name, body in SMALL.items():
                assert 400 <= post(server.port, body) < 500, name
            assert post(server.port, encoded(question("?", data_url(png()), n=17))) == 400
            model.engine.runner.outcomes, usual = None, model.engine.runner.outcomes
            assert post(server.port, encoded(question())) == 500
            model.engine.runner.outcomes = usual
            assert post(server.port, encoded(question(response_format=failing))) == 200
            wait_for(lambda: server.service.chat.held_bytes == 0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            kept = [each for each in gc.garbage if isinstance(each, Refusal | PixedgeError | TypeError)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert not kept


def test_what_is_refused_is_given_back(model):
    with serving(model, waiting_bytes=8 * MIB) as server:
        for name, body in SMALL.items():
            assert 400 <= post(server.port, body) < 500, name
            wait_for(lambda: server.service.chat.held_bytes == server.service.chat.held == 0)


def test_text_is_held_until_the_prompt_exists(model, monkeypatch):
    """While 10 requests wait for their prompt, what was read of them is counted."""
    body = encoded(question(EMOJI * 200_000))  # 800 kB, and as much again as text
    release = threading.Event()
    with serving(model, waiting_bytes=64 * MIB) as server:
        prompt = server.service.chat._prompt
        monkeypatch.setattr(
            server.service.chat, "_prompt", lambda *args: (release.wait(30), prompt(*args))[1]
        )
        statuses = []
        threads = [
            threading.Thread(target=lambda: statuses.append(post(server.port, body))) for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.service.chat.held_bytes > 10 * 800_000)
        release.set()
        for thread in threads:
            thread.join()
        assert statuses == [400] * 10  # it does not fit the context
        wait_for(lambda: server.service.chat.held_bytes == 0)


def test_nobody_waits_for_large_texts(model, monkeypatch):
    """A text of a megabyte takes a second to split into tokens; with two in hand everybody waited."""
    release = threading.Event()
    with serving(model) as server:
        prompt = server.service.chat._prompt

        def slow(asked, held):
            assert not held.large or release.wait(30)
            return prompt(asked, held)

        monkeypatch.setattr(server.service.chat, "_prompt", slow)
        statuses = []
        body = encoded(question("x" * 100_000))
        threads = [
            threading.Thread(target=lambda: statuses.append(post(server.port, body))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.service.chat.held >= 1)
        assert post(server.port, encoded(question())) == 200
        assert not statuses
        release.set()
        for thread in threads:
            thread.join()
        assert statuses == [400] * 6


def test_decoded_pictures_are_held(model):
    """Four pictures as the encoder wants them take 768 KiB: alone they may, beside another request not."""
    urls = [data_url(png((300, 300), colour)) for colour in ("red", "teal", "navy", "olive")]
    with serving(model, waiting_bytes=300_000) as server:
        assert post(server.port, encoded(question("?", *urls))) == 200
        server.service.chat._room.held += 1
        assert post(server.port, encoded(question("?", *urls))) == 429
        assert post(server.port, encoded(question("?", urls[0]))) == 200
        server.service.chat._room.held -= 1


READ = {
    **{f"refused: {name}": body for name, body in SMALL.items()},
    "a picture": encoded(question("What?", data_url(bytes(20_000)))),
    "pictures with slashes escaped": encoded(
        question("What?", data_url(b"\xff" * 20_000), data_url(b"?" * 20_000))
    ).replace(b"/", rb"\/"),
    "a picture with plus signs escaped": encoded(question("?", data_url(b"\xfb\xef\xbe" * 9_000))).replace(
        b"+", rb"\u002B"
    ),
    "a picture with line ends": encoded(question("?", data_url(bytes(9_000)).replace("AAA", "A\r\nA"))),
    "a text with base64 in it": encoded(question(f"é {data_url(bytes(9_000))} {EMOJI}")),
    "a text that ends with base64": encoded(question(f"é {data_url(bytes(9_000))}")),
    "a quote after base64": encoded(question(f'{data_url(bytes(9_000))}" {data_url(bytes(9_000))}')),
    "a backslash after base64": encoded(question(f"{data_url(bytes(9_000))}\\")),
    "a byte order mark": b"\xef\xbb\xbf" + encoded(question("?", data_url(bytes(9_000)))),
    "something like a name of ours": encoded(question("payload " + "0" * 32, data_url(bytes(9_000)))),
}


@pytest.mark.parametrize("body", READ.values(), ids=READ)
def test_it_is_read_as_json_reads_it(body):
    """Python's json is the judge, of what it reads and of what it does not."""
    try:
        expected = json.loads(body)
    except (ValueError, RecursionError):
        expected = None
    try:
        found = JsonBody(body, 10 * MIB).parse()
    except Refusal:
        found = None
        if expected is not None:  # it may have more objects than are read
            assert sum(map(body.count, (b",", b"[", b"{", b":"))) > 500_000
            return
    assert found == expected


@pytest.mark.parametrize("name", [*filter(re.compile("emoji|base64 (?!.* end$)").search, SMALL)])
def test_parsing_takes_what_was_said_before(name):
    """Measured with tracemalloc, which counts what Python allocates."""
    body = SMALL[name]
    tracemalloc.start()
    try:
        found = JsonBody(body, 10 * MIB)
        parsing, parsed = found.parsing_bytes, found.parsed_bytes
        value = found.parse()
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value
    assert peak < parsing + 100_000
    assert size < parsed + len(body) + 100_000  # the rest lives as long as found does


def resident(process, field="VmRSS"):
    """Bytes that a server holds."""
    text = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) << 10


def large(base, *options):
    options = ("--model", small_export(base), "--device", "cpu", "--model-name", "model", *options)
    return Process(base, *options, PIXEDGE_API_KEY="")


def test_large_refused_requests_take_no_multiple_of_their_size(tmp_path_factory):
    """Each one decoded would take four times its bytes, and as much again as a value."""
    size = 32 * MIB
    several = bodies(size)
    with large(tmp_path_factory.getbasetemp()) as process:
        post(process.port, encoded(question()))
        before = resident(process)
        for name, most in (("text with an emoji", 3), ("text", 3), ("an emoji, and base64 of nothing", 6)):
            for _ in range(4):
                assert 400 <= post(process.port, several[name]) < 500, name
            assert resident(process, "VmHWM") - before < most * size
        assert process.end() == 0


@pytest.mark.slow
def test_a_thousand_refused_requests_of_every_kind(tmp_path_factory):
    """After a fifth of them, what the server holds is what it needs."""
    several = bodies(2 * MIB)
    with large(tmp_path_factory.getbasetemp()) as process:
        for turn in range(1000):
            if turn == 200:
                settled = resident(process)
            for name, body in several.items():
                assert 400 <= post(process.port, body) < 500, name
        growth = resident(process) - settled
        peak = resident(process, "VmHWM")
        print(f"{1000 * len(several):,} refused: {growth / MIB:+.1f} MiB, peak {peak / MIB:.0f} MiB")
        assert growth < 32 * MIB
        assert process.end() == 0
