"""Formats from strangers at the server: refused with the field, and nobody else waits for them."""

import http.client
import json
import threading

import pytest

from pixedge.format_trial import FormatTrial
from pixedge.model import Draft
from tests.attack.bodies import encoded, question
from tests.doors import small_model
from tests.hostile_formats import hostile_format
from tests.serving import CHAT, serving, wait_for

NAMES = {"regex": "regex", "lark": "grammar"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(small_model(tmp_path_factory.getbasetemp())) as server:
        yield server


def ask(server, kind, text, **more):
    """Ask for an answer in a format; give status and body."""
    if kind == "schema":
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": json.loads(text)}}
    else:
        form = {"type": NAMES[kind], NAMES[kind]: text}
    return post(server, question("What?", response_format=form, max_tokens=3, **more))


def post(server, body):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", CHAT, encoded(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    try:
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def large_grammar() -> str:
    return 'start: "a"\n' + "// \n" * 2000


def test_formats_that_ended_the_process(server):
    chain = "start: r0\n" + "".join(f"r{at}: r{at + 1}\n" for at in range(4500)) + 'r4500: "a"'
    definitions = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1200)}
    references = json.dumps({"$defs": definitions | {"d1200": {}}, "$ref": "#/$defs/d0"})
    for kind, text in [("lark", chain), ("schema", references), ("regex", ".*" * 20_000)]:
        status, body = ask(server, kind, text)
        assert status == 400
        assert body["error"]["param"] == "response_format"
        assert "limit" in body["error"]["message"] or "more than" in body["error"]["message"]
    assert ask(server, "regex", "[ab]{3}")[0] == 200


def test_every_kind_of_hostile_format_has_an_answer(server):
    for seed in range(36):
        status, body = ask(server, *hostile_format(seed)[1:])
        assert status in (200, 400), (seed, body)
    assert post(server, question("What?", max_tokens=2))[0] == 200


def test_others_do_not_wait_for_a_trial(server, monkeypatch):
    release, waiting = threading.Event(), threading.Event()

    def slow(*_):
        waiting.set()
        assert release.wait(60)
        return ""

    monkeypatch.setattr(FormatTrial, "find_fault", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(server, "lark", large_grammar()))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert waiting.wait(30)
    wait_for(lambda: server.service.chat.held == 6)
    assert post(server, question("What?", max_tokens=2))[0] == 200
    assert ask(server, "schema", '{"type": "object"}')[0] == 200
    assert not found
    release.set()
    for thread in threads:
        thread.join()
    assert [status for status, _ in found] == [200] * 6


def test_many_choices_of_a_format_that_takes_long(server, monkeypatch):
    monkeypatch.setattr(Draft, "format_seconds", 0.3)
    status, body = ask(server, "regex", "[ab]{3}", n=8)
    assert status == 400 and "n is 8 and the format takes 0.30 s" in body["error"]["message"]
    assert body["error"]["param"] == "response_format"
    assert ask(server, "regex", "[ab]{3}", n=2)[0] == 200
