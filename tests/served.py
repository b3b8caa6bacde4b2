"""A server in a process of its own, as a user starts it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.exported_demo import ROOT, environment


@contextlib.contextmanager
def served(base: Path, model: Path, *options: str, **variables: str):
    """Start ``pixedge serve`` at any free port, give its URL, and end it; it must end without a complaint."""
    command = [sys.executable, "-W", "error", "-m", "pixedge", "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", *options],
        cwd=ROOT,
        env=environment(base) | {"PIXEDGE_API_KEY": "", **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"https?://\S+", line):
                yield found[0].rstrip("/.,")
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(said)}")
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0, rest
        assert "Traceback" not in rest, rest
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()
