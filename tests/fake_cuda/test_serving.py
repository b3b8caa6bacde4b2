"""A server on a card: many clients at a time, and a card whose memory is full."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import pixedge
from pixedge.errors import CapacityError
from pixedge.model import Model
from pixedge.sampling import SamplingParams
from tests.exported_demo import PICTURES
from tests.fake_cuda import card
from tests.serving import CHAT, Process, ask, serving

PICTURE = "data:image/png;base64," + base64.b64encode((PICTURES / "shapes.png").read_bytes()).decode()


@pytest.fixture(scope="module")
def exact(folder: Path) -> Model:
    """Return a model whose steps allocate, for without graphs there are no fixed buffers."""
    return pixedge.load(folder, device="cuda", dtype="float32")


def test_eight_clients(base: Path, folder: Path) -> None:
    with Process(base, "--model", folder, "--device", "cuda") as server, httpx.Client(timeout=60) as client:

        def one(number: int) -> int:
            pictures = [PICTURE] * (number % 3)
            body = ask(f"Question {number}", *pictures, temperature=number % 2, max_tokens=24)
            body["model"] = folder.name
            found = client.post(server.url + CHAT, json=body)
            assert found.status_code == 200, found.text
            return found.json()["usage"]["completion_tokens"]

        with ThreadPoolExecutor(8) as clients:
            assert all(1 <= tokens <= 24 for tokens in clients.map(one, range(24)))
        assert client.get(server.url + "/health").json()["status"] == "ready"
        assert server.end() == 0
    assert "Traceback" not in "".join(server.said)


@pytest.mark.parametrize("pictures", [[], [PICTURE]])
def test_a_full_card_ends_a_request_and_no_more(exact: Model, pictures: list[str]) -> None:
    with serving(exact) as server, httpx.Client(timeout=60) as client:
        url = server.url + CHAT
        with card.full():
            found = client.post(url, json=ask("What?", *pictures))
        error = found.json()["error"]
        assert (found.status_code, error["code"]) == (503, "out_of_memory"), found.text
        assert "memory" in error["message"], found.text
        assert client.post(url, json=ask("What?", *pictures, max_tokens=4)).status_code == 200


def test_a_card_that_is_full_in_the_middle_of_an_answer(exact: Model) -> None:
    """The answer ends with a sentence; the next one is given."""
    messages = [{"role": "user", "content": "Hello"}]
    pieces: Iterator[str] = iter(exact.stream(messages, SamplingParams(max_tokens=20)))
    next(pieces)
    with card.full(), pytest.raises(CapacityError, match="the GPU's memory is full; use a"):
        list(pieces)
    assert exact.generate(messages, SamplingParams(max_tokens=20)).completion_tokens > 1
