"""The server as a process: how it starts, what it refuses, how it ends, and curl."""

import base64
import contextlib
import io
import json
import signal
import socket
import ssl
import subprocess
import threading
import time

import httpx
import pytest

from pixedge.cli import main
from tests.exported_demo import PICTURES, exported_demo
from tests.serving import CHAT, Process, ask, metric, wait_for
from tests.small_exports import small_export


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def folder(base):
    return small_export(base)


def asked(text="What?", **fields):
    return ask(text, **fields) | {"model": "small"}


def run(folder, *arguments):
    """Run a server that does not start, in this process; give its exit code and what it says."""
    said = io.StringIO()
    command = ["serve", "--model", folder, "--port", 0, *arguments]
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as caught:
        main.main([*map(str, command)])
    return caught.value.code, said.getvalue().strip()


class Reader(threading.Thread):
    """Streams an answer; ``events`` are the objects of its events, "[DONE]" included."""

    def __init__(self, url, **fields):
        super().__init__()
        self.url, self.fields = url, fields
        self.events, self.status, self.failure = [], None, None
        self.start()

    def run(self):
        body = asked(stream=True, **self.fields)
        try:
            with httpx.stream("POST", self.url + CHAT, json=body, timeout=60) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    if line:
                        assert line.startswith("data: ")
                        data = line.removeprefix("data: ")
                        self.events.append(data if data == "[DONE]" else json.loads(data))
        except httpx.HTTPError as error:
            self.failure = error


def test_sigterm_lets_an_answer_end(base, folder):
    with Process(base, "--model", folder, "--model-name", "small", step_seconds=0.01) as server:
        reader = Reader(server.url, max_tokens=150)
        wait_for(lambda: len(reader.events) > 3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        assert server.end() == 0
        reader.join(10)
    assert reader.failure is None and reader.events[-1] == "[DONE]"
    assert reader.events[-2]["choices"][0]["finish_reason"] == "length"


def test_sigterm_ends_an_answer_that_takes_too_long(base, folder):
    arguments = ("--model", folder, "--model-name", "small", "--drain", "0.5")
    with Process(base, *arguments, step_seconds=0.05) as server:
        reader = Reader(server.url, max_tokens=500)
        wait_for(lambda: len(reader.events) > 3)
        assert server.end() == 0
        reader.join(10)
    assert reader.failure is None and len(reader.events) < 400  # and not the 500 tokens of the whole answer
    assert reader.events[-1]["error"]["code"] == "shutting_down"


def test_a_second_ctrl_c_does_not_wait(base, folder):
    with Process(base, "--model", folder, "--model-name", "small", step_seconds=0.05) as server:
        reader = Reader(server.url, max_tokens=500)
        wait_for(lambda: len(reader.events) > 3)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert server.end(signal.SIGINT) == 130
        reader.join(10)
        assert len(reader.events) < 400  # and not the 500 tokens of the whole answer
        assert not any("Traceback" in line for line in server.said), server.said


def test_a_restart_takes_the_same_port(base, folder):
    with Process(base, "--model", folder) as first:
        with httpx.Client(base_url=first.url) as client:  # a connection of which the server closes its end
            assert client.get("/v1/models").status_code == 200
            code, said = run(folder, "--port", first.port)
            assert code == 1
            assert (
                said == f"pixedge: port {first.port} of 127.0.0.1 is taken; give another --port, or 0 for any"
            )
            assert first.end() == 0
        with Process(base, "--model", folder, port=first.port) as second:
            assert second.port == first.port
            assert httpx.get(f"{second.url}/v1/models").status_code == 200


def test_other_machines_need_a_key(base, folder):
    code, said = run(folder, "--host", "0.0.0.0")
    assert code == 2 and "--insecure to let everybody in" in said
    with Process(base, "--model", folder, "--host", "0.0.0.0", "--insecure") as server:
        assert "http://localhost:" in server.url
        assert httpx.get(f"http://127.0.0.1:{server.port}/v1/models").status_code == 200
        assert server.end(signal.SIGINT) == 130
        assert len(server.said) == 1 and server.said[0].startswith("serving ")


def test_a_key_opens_to_other_machines(base, folder, tmp_path):
    file = tmp_path / "keys"
    file.write_text("first-of-the-keys\n\nsecond-of-the-keys\n")
    with Process(base, "--model", folder, "--host", "0.0.0.0", "--api-key-file", file) as server:
        assert any("as they are" in line for line in server.said)
        for key, status in (("first-of-the-keys", 200), ("second-of-the-keys", 200), ("third", 401)):
            answer = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == status


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--api-key-file", "{tmp}/none"], "--api-key-file {tmp}/none cannot be read"),
        (["--api-key-file", "{tmp}/empty"], "--api-key-file {tmp}/empty holds no key"),
        (["--api-key-file", "{tmp}/spaces"], "a key in {tmp}/spaces has spaces"),
        (["--tls-key", "key.pem"], "--tls-key is given without --tls-cert"),
        (["--tls-cert", "{tmp}/none"], "{tmp}/none cannot be used for TLS (No such file or directory)"),
        (["--tls-cert", "{tmp}/empty"], "{tmp}/empty cannot be used for TLS (not a certificate"),
        (["--host", "no-such-host.invalid"], "--host no-such-host.invalid is no address"),
        (["--cors", "example.com"], "--cors example.com is not an origin"),
        (["--media-dir", "{tmp}/none"], "--media-dir {tmp}/none is not a folder"),
        (["--allow-host", "http://a.example"], "--allow-host http://a.example is not a host"),
        (["--queue", "-1"], "Invalid value for '--queue'"),
        (["--port", "65536"], "Invalid value for '--port'"),
    ],
)
def test_a_server_that_does_not_start(folder, tmp_path, arguments, reason):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "spaces").write_text("a key\n")
    code, said = run(folder, *[each.format(tmp=tmp_path) for each in arguments])
    assert code == 2 and said.startswith("pixedge: ") and "\n" not in said
    assert reason.format(tmp=tmp_path) in said


def test_tls(base, folder, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    about = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run([*make, *about, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked], check=True
    )
    code, said = run(folder, "--tls-cert", certificate, "--tls-key", locked)
    assert code == 2 and "has a password" in said
    arguments = ("--model", folder, "--model-name", "small", "--tls-cert", certificate, "--tls-key", key)
    with Process(base, *arguments) as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.post(server.url + CHAT, json=asked(max_tokens=2), verify=trusting)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2
        with socket.create_connection(("127.0.0.1", server.port)) as plain:  # no TLS, no answer
            plain.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200" not in plain.recv(100)


def test_curl(base):
    """The curl of the model's page, on standard input as long pictures must come."""
    folder = exported_demo(base)
    picture = base64.b64encode((PICTURES / "shapes.png").read_bytes()).decode()
    body = """{
        "model": "mistralai/demo",
        "messages": [
          {
            "role": "user",
            "content": [
                {"type" : "text", "text": "What colour is the star?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}}
            ]
          }
        ]
      }"""
    with Process(base, "--model", folder) as server:
        curl = ["curl", "--silent", "--show-error", "--location", f"{server.url}/v1/chat/completions"]
        headers = ["--header", "Content-Type: application/json", "--header", "Authorization: Bearer token"]
        try:
            done = subprocess.run(
                [*curl, *headers, "--data", "@-"], input=body % picture, capture_output=True, text=True
            )
        except FileNotFoundError:
            pytest.skip("curl is not installed")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "The star is yellow."


def test_a_client_that_leaves_is_not_computed_for(base, folder):
    """Whether it reads a stream, waits for a whole answer, or has sent half of a body."""
    with Process(base, "--model", folder, "--model-name", "small", step_seconds=0.02) as server:

        def figures():
            return httpx.get(f"{server.url}/metrics").text

        for stream in (True, False):
            before = metric(figures(), 'pixedge_answers_total{finish="cancelled"}')
            body = json.dumps(asked(max_tokens=500, stream=stream)).encode()
            with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as client:
                head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                wait_for(lambda: metric(figures(), "pixedge_answers_running") == 1)
            wait_for(lambda: metric(figures(), "pixedge_answers_running") == 0, 5)  # it would take 10 s
            assert metric(figures(), 'pixedge_answers_total{finish="cancelled"}') == before + 1
            assert metric(figures(), "pixedge_kv_cache_used_tokens") == 0
        with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as client:
            client.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
        wait_for(lambda: metric(figures(), 'pixedge_requests_total{status="499"}') == 2)
