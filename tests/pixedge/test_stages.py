"""What is told between a question and the first token: by the engine, on a terminal, and to nobody else."""

import io
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

import pixedge
from pixedge.stage import Stage
from tests.exported_demo import PICTURES, ROOT, environment, exported_demo

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("shapes.png", "first.png")

# Each step takes longer, or bars would come and go between two refreshes.
SLOWED = """
import time
from pixedge.cli import main
from pixedge.engine import Engine
step = Engine._step
Engine._step = lambda engine: (time.sleep(0.3), step(engine))[1]
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported_demo(tmp_path_factory.getbasetemp())


def test_the_engine_tells_of_pictures_and_of_the_prompt_before_the_first_token(folder):
    model = pixedge.load(folder)
    content = [{"type": "image", "image": Image.open(PICTURES / name).convert("RGB")} for name in NAMES]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What colour?" * 200}]}]
    told = []
    stream = model.stream(messages, on_stage=told.append)
    assert told == []  # nothing is computed before the first piece is asked for
    pieces = iter(stream)
    next(pieces)
    before = list(told)
    for _ in pieces:
        pass
    assert told == before
    pictures = [stage for stage in told if stage.name == "picture"]
    sizes = [(picture["image"].width, picture["image"].height) for picture in content]
    assert pictures == [Stage("picture", at, 2, size) for at, size in enumerate(sizes)]
    prompt = [stage for stage in told if stage.name == "prompt"]
    assert {stage.total for stage in prompt} == {stream.answer.prompt_tokens}
    done = [stage.done for stage in prompt]
    assert done == sorted(set(done)) and done[0] == 0 and len(done) > 1  # more than one chunk

    told.clear()
    again = model.stream(messages, on_stage=told.append)
    assert "".join(again) == stream.answer.text
    assert [stage.name for stage in told] == ["prompt"]  # known pictures are not encoded again
    assert told[0].done == again.answer.cached_tokens > 0


def run(folder, *arguments, terminal):
    """Run a slowed command whose standard error is a terminal, or a pipe; give stdout and stderr."""
    import pty

    parent, child = pty.openpty() if terminal else os.pipe()
    images = [part for name in NAMES for part in ("--image", str(PICTURES / name))]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, *arguments, "--model", str(folder), *images],
        cwd=ROOT,
        env=environment(folder.parent) | {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "120"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=child,
    )
    os.close(child)
    process.stdin.write(b"What colour is the star?\n")
    process.stdin.close()
    err = io.BytesIO()
    try:
        while data := os.read(parent, 10_000):
            err.write(data)
    except OSError:  # EIO: the terminal's other end is closed
        pass
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == 0
    os.close(parent)
    return out.decode(), err.getvalue().decode()


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_terminal_is_shown_each_stage_and_a_file_none(folder, command):
    """On a CPU twelve seconds went by without a sign of life."""
    out, err = run(folder, command, terminal=True)
    assert out.startswith("The star is yellow.\n")
    for words in (r"picture 1 of 2 \(176 x 128\)", r"picture 2 of 2 \(", r"prompt .*\d tokens", r"0:00:0\d"):
        assert re.search(words, err), words
    # the bars are wiped before anything else is written
    assert err.rfind("\x1b[2K") > err.rfind("tokens\x1b") and err.rfind("\x1b[?25h") > err.rfind("\x1b[?25l")

    out, err = run(folder, command, terminal=False)
    assert out.startswith("The star is yellow.\n")
    assert "encoding" not in err and "of 2" not in err and "\x1b" not in err
