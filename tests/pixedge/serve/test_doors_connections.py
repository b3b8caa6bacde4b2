"""Many connections that say nothing, or little: they cost their senders, and nobody else.

At ``ulimit -n 1024``, 2,000 silent connections made 50 MB of log and 15 s without service.
"""

import http.client
import json
import logging
import resource
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from pixedge.serve import server as server_module
from pixedge.serve.listener import _sender
from pixedge.serve.log import FewLines
from pixedge.serve.server import listen, make_server
from pixedge.serve.settings import Settings
from tests.attack.connections import BODY, HEAD, Slow, open_many_files, worst_wait
from tests.doors import small_model
from tests.serving import CHAT, Process, ask, serving, slowed, wait_for
from tests.small_exports import small_export


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.getbasetemp())


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(server_module, "_CONNECTIONS", 20)


def healthy(port):
    """Ask as a new client does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
    finally:
        connection.close()


@pytest.mark.parametrize("said", [b"", HEAD, BODY, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_more_connections_than_there_may_be(model, few, said):
    """Silent, in a head, in a body, and idle behind an answer: a new client is served all the same."""
    with serving(model) as server:
        (listener,) = server.listeners
        with Slow(server.port, 60, said):
            for _ in range(30):
                healthy(server.port)
                assert listener.count <= 20
        wait_for(lambda: listener.count == 0)
        assert not listener._waiting and not listener._handshakes


def test_an_answer_under_way_is_not_dropped(model, few):
    with serving(model) as server, slowed(model, 0.01):
        with httpx.stream("POST", server.url + CHAT, json=ask(max_tokens=100, stream=True)) as answer:
            lines = answer.iter_lines()
            next(lines)
            with Slow(server.port, 60):
                healthy(server.port)
                *_, last = [line for line in lines if line]
        assert last == "data: [DONE]"


def test_when_all_are_answered_one_more_is_dropped_at_once(model, few, monkeypatch):
    with serving(model) as server, slowed(model, 0.01):
        body = json.dumps(ask(max_tokens=400)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        with Slow(server.port, 20, request):
            wait_for(lambda: server.service.chat.held == 20)
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one_more:
                assert one_more.recv(10) == b""
            assert server.service.chat.held == 20
        wait_for(lambda: server.service.chat.held == 0)


def test_connections_before_their_handshake_count(model, few, tmp_path):
    """A TLS handshake that does not come to its end holds a file as anything else does."""
    certificate = tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    try:
        subprocess.run(
            [*make, "-days", "2", "-subj", "/CN=localhost", "-keyout", certificate, "-out", tmp_path / "c"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "c").read_bytes())
    server = make_server(model, Settings(("model",)), server_module.tls_context(certificate, None))
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        wait_for(lambda: server.service.state == "ready")
        (listener,) = server.listeners
        with Slow(port, 60), Slow(port, 30, b"\x16\x03\x01"):
            wait_for(lambda: listener.count == 20)
            answer = httpx.get(f"https://127.0.0.1:{port}/health", verify=False)
            assert answer.status_code == 200 and listener.count <= 20
        wait_for(lambda: listener.count == 0)
        assert not listener._handshakes
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def test_whoever_has_most_connections_loses_one():
    """Addresses of one IPv6 network are one sender, and IPv4 is itself in every spelling."""
    assert _sender("2001:200::1") == _sender("2001:200::ffff:1") != _sender("2001:200:0:1::1")
    assert _sender("::ffff:1.2.3.4") == _sender("1.2.3.4") != _sender("::ffff:1.2.3.5")


def test_a_log_of_few_lines(caplog, monkeypatch):
    """Five lines of a kind a minute, and then how many there were more."""
    clock = [100.0]
    monkeypatch.setattr("pixedge.serve.log.time.monotonic", lambda: clock[0])
    log = logging.getLogger("pixedge.test-of-few-lines")
    log.addFilter(FewLines())
    for number in range(1000):
        log.warning("a line, number %d", number)
    log.warning("another line")
    assert len(caplog.messages) == 6
    clock[0] += 61
    log.warning("a line, number %d", 7)
    assert caplog.messages[-1] == "a line, number 7 (995 more lines like this were left out)"


def test_the_limit_of_files_is_raised():
    """To what the system allows; it is the soft one that shells set low."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048:
        pytest.skip("the system allows no more files")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2048));"
        "from pixedge.serve.server import _raise_file_limit; print(_raise_file_limit(),"
        " *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1280", "1280", "2048"]


def limited(base):
    """Start a server that can never open more than 1,024 files."""
    options = ("--model", small_export(base), "--device", "cpu", "--model-name", "model")
    return Process(base, *options, PIXEDGE_API_KEY="", files=1024)


def check_log(process):
    assert process.end() == 0
    assert sum(map(len, process.said)) < 10_000, process.said[:20]


def answered(process):
    """Ask a question as a new client does."""
    answer = httpx.post(process.url + CHAT, json=ask(max_tokens=1), timeout=30)
    assert answer.status_code == 200


def test_2000_silent_connections(tmp_path_factory):
    open_many_files(4096)
    with limited(tmp_path_factory.getbasetemp()) as process:
        with Slow(process.port, 2000):
            for _ in range(5):
                answered(process)
        check_log(process)


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", HEAD, BODY], ids=["silent", "heads", "bodies"])
@pytest.mark.parametrize("count", [600, 2000])
def test_slow_clients_cost_nobody_else_a_second(tmp_path_factory, said, count):
    """A byte every 5 s on each of them, and a new one for each that is dropped."""
    open_many_files(4096)
    with limited(tmp_path_factory.getbasetemp()) as process:
        with Slow(process.port, count, said, 5.0):
            worst = worst_wait(lambda: answered(process), 20)
        print(f"{count} connections: an honest client waits {worst:.2f} s at most")
        assert worst < 1
        check_log(process)
