"""A process that forks with a model on a card: the child is refused in a sentence, the parent goes on."""

import json
from pathlib import Path

import pytest

from tests.fake_cuda.conftest import Script

FORK = """
import json, os, signal, sys
import pixedge
from pixedge.errors import PixedgeError
from pixedge.sampling import SamplingParams

signal.alarm(100)
model = pixedge.load(sys.argv[1], **json.loads(sys.argv[2]))
ask, few = [{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=30)
under_way = iter(model.stream(ask, few))
next(under_way)
reads, writes = os.pipe()
if not (child := os.fork()):
    said = []
    for attempt in (lambda: next(under_way), lambda: model.generate(ask, few)):
        try:
            attempt()
        except PixedgeError as error:
            said.append(str(error))
    os.write(writes, json.dumps(said).encode())
    os._exit(0)
_, status = os.waitpid(child, 0)
os.close(writes)
rest = list(under_way)
again = model.generate(ask, few)
with os.fdopen(reads) as pipe:
    print(json.dumps([status, json.load(pipe), len(rest), again.completion_tokens]))
"""


@pytest.mark.parametrize(
    "places",
    [{"device": "cuda"}, {"device": "cuda", "dtype": "float32"}, {"vision_device": "cuda", "device": "cpu"}],
)
def test_a_fork_after_load(places: dict[str, str], folder: Path, script: Script) -> None:
    """It was torch's RuntimeError, about a way to start processes that the user may not have chosen."""
    status, said, rest, again = script(FORK, folder, json.dumps(places))
    assert status == 0
    assert said[0] == "this answer was begun before the process forked; ask again"
    assert said[1].startswith(
        "a model on a GPU cannot be used in a process that was forked after it was loaded; "
    )
    assert rest > 0 and again > 0
