"""Servers for tests: a process as users start it, and one in a thread whose engine can be looked into."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from pixedge.serve.server import address, listen, make_server
from pixedge.serve.settings import Settings
from tests.exported_demo import ROOT, environment

CHAT = "/v1/chat/completions"


# Each step takes longer, so that an answer is still under way when something happens.
_SLOWED = """
import time
from pixedge.cli import main
from pixedge.engine import Engine
step = Engine._step
Engine._step = lambda engine: (time.sleep({}), step(engine))[1]
main()
"""


class Process:
    """`pixedge serve` on a port that was free, once it says that it is ready."""

    def __init__(
        self,
        base: Path,
        *arguments: object,
        step_seconds: float = 0.0,
        port: int = 0,
        files: int | None = None,
        **variables: str,
    ) -> None:
        how = ["-c", _SLOWED.format(step_seconds)] if step_seconds else ["-m", "pixedge"]
        command = [sys.executable, *how, "serve", "--port", port, "--threads", 1, *arguments]
        if files is not None:  # as many as it may ever open
            command = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *command]
        self.process = subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env=environment(base) | variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r" at (https?://\S+:(\d+))$", line):
                self.url, self.port = found[1], int(found[2])
                break
        else:
            raise AssertionError(f"the server ended: {''.join(self.said)}")
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self._reader.start()
        wait_for(lambda: httpx.get(f"{self.url}/health", verify=False).status_code == 200)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; give the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        self.process.stderr.close()
        return code

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(10)
        self.process.stderr.close()


@contextlib.contextmanager
def serving(model, **settings):
    """Serve a loaded model from a thread; gives the server, whose ``url`` is where it is reached."""
    server = make_server(model, Settings(("model",), **settings))
    sock = listen("127.0.0.1", 0)
    server.url = address(sock, tls=False)
    server.port = sock.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        wait_for(lambda: server.service.state != "starting")
        assert server.service.state == "ready"
        yield server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def slowed(model, seconds):
    """Let every step of a model's engine take longer, for what must happen in the middle of an answer."""
    engine = model.engine
    step = type(engine)._step

    def slow_step():
        time.sleep(seconds)
        step(engine)

    engine._step = slow_step
    try:
        yield
    finally:
        del engine._step


def wait_for(condition, seconds=30.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def ask(text="What?", *pictures, **fields):
    """Give the body of a request."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "model", "messages": [{"role": "user", "content": content}], **fields}


def metric(text, name):
    """Read one sample of /metrics."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} is not in {text}"
    return float(found[1])
