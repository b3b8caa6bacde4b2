"""No head of a request makes a 500 or a traceback, on raw sockets, whatever a server was started with.

``Origin: http://[`` was a 500 with a traceback before the key was looked at, because urlsplit raises for it.
"""

import contextlib
import logging
import random
import re
import socket

import pytest

from pixedge.serve.settings import Keys
from tests.attack.heads import each_value, exchange, random_head
from tests.doors import small_model
from tests.serving import serving

SETTINGS = {
    "open": {},
    "with a key": {"keys": Keys.of("sesame-1234")},
    "for pages of another site": {"origins": ("https://example.com",)},
}
NUMBERS = [300, pytest.param(20_000, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS)
def server(request, tmp_path_factory):
    with serving(small_model(tmp_path_factory.getbasetemp()), **request.param) as server:
        yield server


@pytest.fixture
def said(caplog):
    """Everything that is logged meanwhile, of every library."""
    caplog.set_level(logging.INFO)
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "uvicorn.error")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.WARNING)
    yield caplog
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def errors(said):
    return [record for record in said.records if record.levelno >= logging.ERROR or record.exc_info]


def check(server, said, heads):
    for head in heads:
        heard = exchange(server.port, head)
        for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard):
            assert int(status) < 500, (head, heard)
        assert b"Traceback" not in heard
        assert not errors(said), head


def test_every_value_in_every_header(server, said):
    check(server, said, each_value())


def test_what_is_no_http_behind_the_beginning_of_an_answer(server, said):
    """The request is refused while its body still comes, and what comes then is no body."""
    head = b"POST /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(head)
        assert b" 40" in line.recv(1000)
        line.sendall(b"zz\r\n")
        with contextlib.suppress(ConnectionResetError):
            while line.recv(1000):
                pass
    assert not errors(said)


@pytest.mark.parametrize("number", NUMBERS)
def test_random_heads(server, said, number):
    rng = random.Random(number)
    check(server, said, (random_head(rng) for _ in range(number)))
    assert b'{"status": "ready"}' in exchange(server.port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
