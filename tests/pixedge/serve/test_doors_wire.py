"""What is wrong with a request before it is one: heads, lengths, pieces and their pace, on real sockets."""

import json
import re
import socket
import time

import pytest

from pixedge.serve.connection import Connection
from tests.doors import question, small_model
from tests.serving import serving, wait_for

MAX_BODY = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that is impatient."""
    patience = pytest.MonkeyPatch()
    patience.setattr(Connection, "head_seconds", 0.4)
    patience.setattr(Connection, "send_seconds", 0.4)
    model = small_model(tmp_path_factory.getbasetemp())
    with serving(model, max_body=MAX_BODY, pause_seconds=0.3, body_seconds=0.8) as server:
        yield server
    patience.undo()


class Line:
    """A connection on which anything is said."""

    def __init__(self, server, said=b""):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        if said:
            self.say(said)

    def say(self, said):
        self.socket.sendall(said)

    def hear(self):
        """Give everything until the server closes; b"" where it says nothing or resets the connection."""
        parts = []
        try:
            while part := self.socket.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
        self.socket.close()
        return b"".join(parts)


def head(*lines, method="POST", path="/v1/chat/completions"):
    fixed = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode("latin-1")


def status(heard):
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", heard)
    return int(found[1]) if found else None


JSON = "Content-Type: application/json"
BODY = json.dumps({**question(), "model": "model"}).encode()

HEADS = {
    "two lengths": (head(JSON, "Content-Length: 5", "Content-Length: 6") + b"hello", 400),
    "a list of lengths": (head(JSON, "Content-Length: 5, 6") + b"hello", 400),
    "a negative length": (head(JSON, "Content-Length: -1"), 400),
    "a length with a sign": (head(JSON, "Content-Length: +5") + b"hello", 400),
    "a length in letters": (head(JSON, "Content-Length: five") + b"hello", 400),
    "a length of 10^30": (head(JSON, "Content-Length: 1" + "0" * 30), 400),
    "another transfer encoding": (head(JSON, "Transfer-Encoding: gzip, chunked"), 400),
    "a chunk of a size in letters": (head(JSON, "Transfer-Encoding: chunked") + b"xyz\r\n", 400),
    "a chunk of 2^80 bytes": (head(JSON, "Transfer-Encoding: chunked") + b"f" * 21 + b"\r\n", 400),
    "a chunk with a long extension": (head(JSON, "Transfer-Encoding: chunked") + b"1;" + b"x" * 200_000, 400),
    "a space before the colon": (head(JSON, "Content-Length : 5") + b"hello", 400),
    "a NUL in a header": (head("X-A: b\0c"), 400),
    "a carriage return in a header": (head("X-A: b\rX-Evil: 1"), 400),
    "a header without a name": (head(": x"), 400),
    "a header of 200,000 letters": (head("X-A: " + "x" * 200_000), 400),
    "10,000 headers, and none of them the type": (head(*["X-A: b"] * 10_000), 415),
    "a path of 200,000 letters": (head(path="/" + "x" * 200_000), 400),
    "a path with a space": (head(path="/a b"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.test\r\n\r\n", 400),
    "HTTP/2 at once": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 403),
    "TLS to a server without": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
    "noise": (bytes(range(256)) * 4, 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", None),
}


@pytest.mark.parametrize(("said", "expected"), HEADS.values(), ids=HEADS)
def test_a_head(server, said, expected):
    try:
        heard = Line(server, said).hear()
    except (ConnectionResetError, BrokenPipeError):  # it was closed while more was being said
        heard = b""
    if heard:
        assert status(heard) == expected, heard[:200]
        assert b" 200 OK" not in heard
        assert b"X-Evil" not in heard.partition(b"\r\n\r\n")[0]
    assert heard or expected is None
    assert b"Traceback" not in heard


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def test_a_length_and_chunks_at_once_end_the_connection(server):
    """Whichever a proxy before the server believed, what it took for the body is not run as a request."""
    line = head(JSON, "Transfer-Encoding: chunked", f"Content-Length: {len(SMUGGLED) + 5}")
    heard = Line(server, line + b"0\r\n\r\n" + SMUGGLED).hear()
    assert status(heard) == 400
    assert heard.count(b"HTTP/1.1 ") == 1
    assert b'"object": "list"' not in heard


@pytest.mark.parametrize("path", ["/nothing", "/health", "/v1/chat/completions", "/v1/models"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_bad_chunk_in_the_head_s_packet(server, caplog, method, path):
    """The refusal goes out before the application has begun to answer, which had been an error in the log."""
    start = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    heard = Line(server, start + b"zz\r\n\r\n").hear()
    assert status(heard) == 400 and heard.count(b"HTTP/1.1 ") == 1
    assert (
        status(Line(server, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").hear())
        == 200
    )
    assert not [record for record in caplog.records if record.exc_info]


def test_100_mb_announced_are_refused_before_they_come(server):
    heard = Line(server, head(JSON, "Content-Length: 100000000", "Expect: 100-continue")).hear()
    assert status(heard) == 413
    assert b"100,000,000 bytes and the limit is 1,000,000" in heard


def test_100_mb_in_chunks_are_refused_on_the_way(server):
    line = Line(server, head(JSON, "Transfer-Encoding: chunked"))
    sent = 0
    try:
        while sent < 100_000_000:
            line.say(b"10000\r\n" + b" " * (1 << 16) + b"\r\n")
            sent += 1 << 16
    except (ConnectionResetError, BrokenPipeError):
        pass
    line.hear()
    assert sent < 20_000_000  # what fits into the buffers between the two


SLOW_BODIES = {
    "a body that stops": (b'{"model"', 0),
    "a body that never begins": (b"", 0),
    "a body of a byte now and then": (b"", 400),
}


@pytest.mark.parametrize(("said", "more"), SLOW_BODIES.values(), ids=SLOW_BODIES)
def test_a_slow_body(server, said, more):
    line, sent = Line(server, head(JSON, "Content-Length: 1000") + said), 0
    try:
        for sent in range(more):  # noqa: B007
            line.say(b" ")
            time.sleep(0.05)
    except (ConnectionResetError, BrokenPipeError):
        pass
    heard = line.hear()
    assert not more or sent < more - 1  # 0.8 s are allowed, all of it would take 20 s
    assert status(heard) == 408 or (more and not heard)  # what was said last may reset the connection


SLOW_HEADS = {"a head that stops": b"GET / HT", "no head": b"", "a head without its end": head()[:-2]}


@pytest.mark.parametrize("said", SLOW_HEADS.values(), ids=SLOW_HEADS)
def test_a_slow_head(server, said):
    assert Line(server, said).hear() == b""


def test_a_head_of_a_byte_now_and_then(server):
    line = Line(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
    try:
        for sent in range(400):  # noqa: B007
            line.say(b"x")
            time.sleep(0.05)
    except (ConnectionResetError, BrokenPipeError):
        pass
    assert line.hear() == b""
    assert sent < 399  # 0.4 s are allowed, all of it would take 20 s


def test_a_client_that_takes_nothing_of_a_long_answer(server):
    """The answer has megabytes of log-probabilities; they may not pile up in the server for ever."""
    body = {**question(), "model": "model", "stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
    data = json.dumps({**body, "max_tokens": 500, "temperature": 5}).encode()
    line = Line(server)
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.say(head(JSON, f"Content-Length: {len(data)}") + data)
    wait_for(lambda: server.service.chat.held > 0)
    wait_for(lambda: server.service.chat.held == 0)
    line.socket.close()


def test_after_all_that_a_question_is_answered(server):
    heard = Line(server, head(JSON, f"Content-Length: {len(BODY)}") + BODY).hear()
    assert status(heard) == 200
    wait_for(lambda: server.service.chat.held == server.service.chat.held_bytes == 0)
    pages = server.service.model.engine.cache.pages
    assert pages.available == pages.count
