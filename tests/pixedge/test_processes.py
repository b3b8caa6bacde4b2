"""Loaded models in forked processes, and with one thread or far more than there are cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

START = """
import os, signal, sys, threading
import torch
from pixedge.errors import PixedgeError
from tests.engines import Forced, again, check_books, sampled
from tests.random_models import make_prompt, random_engine, random_pixels, random_text

signal.alarm(100)
engine = random_engine(6)
vision = engine.config.vision
prompt = make_prompt(vision, [1], random_pixels(vision, 3, 4, 0), random_text(0, 60))
"""

FORK = """
expected = sampled(engine, prompt, max_tokens=9)
torch.randn(512, 512) @ torch.randn(512, 512)  # work that starts torch's threads
under_way = engine.tokens(engine.submit(make_prompt(vision, random_text(3, 30)), Forced([14] * 9)))
next(under_way)
engine._lock.acquire()  # as if another thread were in the middle of a step
child = os.fork()
if child == 0:
    signal.alarm(50)
    torch.randn(512, 512) @ torch.randn(512, 512)
    check_books(engine)
    assert sampled(engine, prompt, max_tokens=9) == expected
    try:
        next(under_way)
    except PixedgeError as error:
        assert "before the process forked" in str(error)
    else:
        raise AssertionError("the parent's answer went on in the child")
    os._exit(0)
engine._lock.release()
_, status = os.waitpid(child, 0)
assert status == 0, status
assert len(list(under_way)) == 8
assert sampled(engine, prompt, max_tokens=9) == expected
check_books(engine)
print("both answered")
"""

THREADS = """
expected = sampled(engine, prompt, max_tokens=9)
for threads in (1, 64, 2):
    torch.set_num_threads(threads)
    assert sampled(again(engine), prompt, max_tokens=9) == expected
print("all the same")
"""


def run(code: str) -> str:
    paths = [str(ROOT), str(ROOT / "export")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_answers_and_so_does_its_parent() -> None:
    """Of the parent's threads none is there in the child: neither who held a lock nor OpenMP's workers."""
    assert run(FORK) == "both answered\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the alarm that ends a hanging run needs POSIX")
def test_one_thread_and_sixty_four_give_the_same_tokens() -> None:
    assert run(THREADS) == "all the same\n"
