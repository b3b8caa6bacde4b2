"""What the server shares among its clients: the queue, the steps, the cache, the counts."""

import asyncio
import contextlib
import gc
import json
import os
import random
import socket
import threading
from collections import Counter

import httpx
import openai
import pytest

import pixedge
from pixedge.constraint import Constraint
from pixedge.errors import PixedgeError
from pixedge.serve import driver
from pixedge.serve.metrics import Histogram
from tests.doors import data_url, png
from tests.engines import check_books
from tests.exported_demo import exported_demo
from tests.serving import CHAT, ask, metric, serving, slowed, wait_for
from tests.small_exports import small_export

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model: its answers go on until they are cut."""
    return pixedge.load(small_export(tmp_path_factory.getbasetemp()), device="cpu", max_requests=4)


def check_nothing_is_held(server):
    """Whatever happened, everything was given back."""
    chat, driver = server.service.chat, server.service.driver
    wait_for(lambda: not (chat.held or driver._choices or driver._arrivals))
    assert chat.held_bytes == 0
    engine = server.service.model.engine
    assert not engine._active and not engine._waiting
    check_books(engine)
    metrics = server.service.metrics
    assert metrics.running == metrics.waiting == 0


def test_a_full_queue_is_refused_with_the_time_to_ask_again(model, monkeypatch):
    """Four answers run, two wait, the seventh is told to come again; then there is room once more."""
    with slowed(model, 0.02), serving(model, queue=2) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            threads = [
                threading.Thread(target=client.post, args=(CHAT,), kwargs={"json": ask(max_tokens=60)})
                for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            chat, metrics = server.service.chat, server.service.metrics
            wait_for(lambda: chat.held == 6 and (metrics.running, metrics.waiting) == (4, 2))
            full = client.post(CHAT, json=ask(max_tokens=1))
            assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full"
            assert 1 <= int(full.headers["retry-after"]) <= 60
            again = []
            monkeypatch.setattr(Histogram, "mean", 3.0)
            for held in (6, 12, 40):  # the longer the queue, the later; answers take 3 s, four at a time
                monkeypatch.setattr(chat, "_held", held)
                again.append(int(client.post(CHAT, json=ask(max_tokens=1)).headers["retry-after"]))
            monkeypatch.setattr(chat, "_held", 6)
            assert again == [4, 9, 30]
            assert "6 answers are under way or wait, and 6 may" in full.json()["error"]["message"]
            for thread in threads:
                thread.join()
            assert client.post(CHAT, json=ask(max_tokens=1)).status_code == 200
            # the choices of one request count each
            assert client.post(CHAT, json=ask(max_tokens=1, n=6)).status_code == 200
            never = client.post(CHAT, json=ask(max_tokens=1, n=7))
            assert never.status_code == 400 and "n is 7 and this server takes 6" in never.text
        check_nothing_is_held(server)


def test_pictures_that_wait_are_bounded_in_bytes(model):
    """A picture of 128 by 128 pixels takes 192 KiB as the encoder wants it; a single one may always come."""
    pictures = [data_url(png((128, 128), colour)) for colour in ("red", "teal", "navy")]
    with slowed(model, 0.02), serving(model, waiting_bytes=150_000) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            slow = threading.Thread(
                target=client.post, args=(CHAT,), kwargs={"json": ask("?", pictures[0], max_tokens=40)}
            )
            slow.start()
            wait_for(lambda: server.service.chat.held_bytes == 3 * 128 * 128 * 4)
            refused = client.post(CHAT, json=ask("?", pictures[1], max_tokens=1))
            assert refused.status_code == 429 and "memory" in refused.json()["error"]["message"]
            assert client.post(CHAT, json=ask("?", max_tokens=1)).status_code == 200
            slow.join()
            two = ask("?", *pictures[1:], max_tokens=1)
            assert client.post(CHAT, json=two).status_code == 200
        check_nothing_is_held(server)


def test_the_length_of_an_answer(model):
    """The default is what fits; more than the server allows, or than the cache holds, is refused."""
    with serving(model, max_tokens=300) as server, httpx.Client(base_url=server.url) as client:
        assert client.post(CHAT, json=ask()).json()["usage"]["completion_tokens"] == 300
        more = client.post(CHAT, json=ask(max_tokens=301))
        assert more.status_code == 400 and "301" in more.text and "300" in more.text
    small = pixedge.load(model.folder, device="cpu", context=64)
    with serving(small) as server, httpx.Client(base_url=server.url) as client:
        whole = client.post(CHAT, json=ask()).json()
        assert whole["choices"][0]["finish_reason"] == "length"
        assert whole["usage"]["total_tokens"] == 65  # the last token needs no place
        more = client.post(CHAT, json=ask(max_tokens=200))
        assert more.status_code == 400 and more.json()["error"]["code"] == "context_length_exceeded"
        assert "200" in more.text and "64" in more.text


def test_text_without_end_is_not_tokenised(model):
    """A million characters are the limit of a small model; below it, text is split and its tokens counted."""
    with serving(model) as server, httpx.Client(base_url=server.url) as client:
        limit = 1 << 20
        for content in (
            "a" * (limit + 1),
            [{"type": "text", "text": "a" * limit}, {"type": "text", "text": "b"}],
        ):
            body = ask() | {"messages": [{"role": "user", "content": content}]}
            refused = client.post(CHAT, json=body)
            assert refused.status_code == 400
            assert f"{limit + 1:,} characters and the limit is {limit:,}" in refused.text
        body = ask() | {"messages": [{"role": "user", "content": "a" * 10_000}]}
        assert "the prompt has 10,0" in client.post(CHAT, json=body).text
        many = [{"role": role, "content": "a"} for role in ("user", "assistant")] * 2049
        refused = client.post(CHAT, json=ask() | {"messages": many})
        assert refused.status_code == 400 and "4,098 items and the limit is 4,096" in refused.text


def test_a_fault_of_the_engine_ends_with_its_request(model, monkeypatch):
    """It is told to the client whose request it is, before or in the middle of a stream."""
    with slowed(model, 0.01), serving(model) as server, httpx.Client(base_url=server.url) as client:
        encode = model.engine.runner.pictures._vision.encode
        monkeypatch.setattr(model.engine.runner.pictures._vision, "encode", None)
        failed = client.post(CHAT, json=ask("?", data_url(png((33, 65))), max_tokens=4))
        assert failed.status_code == 500
        assert failed.json()["error"]["message"] == "the server failed on this request; its log says why"
        monkeypatch.setattr(model.engine.runner.pictures._vision, "encode", encode)
        with client.stream("POST", CHAT, json=ask(max_tokens=400, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            monkeypatch.setattr(model.engine.runner, "outcomes", None)
            *_, last = [line for line in lines if line]
        monkeypatch.undo()
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert client.post(CHAT, json=ask(max_tokens=1)).status_code == 200
        check_nothing_is_held(server)


def test_a_format_that_cannot_be_kept_to_is_the_client_s_fault(model, monkeypatch, caplog):
    """What shows only while it is answered, too: before the first text, and behind it."""
    form = {"type": "regex", "regex": "[a-z]{40}"}
    allowed = Constraint.allowed
    calls = 0

    def fail_later(self):
        nonlocal calls
        calls += 1
        if calls > limit:
            raise PixedgeError("the regular expression leaves nothing")
        return allowed(self)

    monkeypatch.setattr(Constraint, "allowed", fail_later)
    with slowed(model, 0.03), serving(model) as server, httpx.Client(base_url=server.url) as client:
        limit = 0
        refused = client.post(CHAT, json=ask(response_format=form))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "response_format"
        calls, limit = 0, 5
        broken = client.post(CHAT, json=ask(response_format=form, stream=True))
        *_, last = [line for line in broken.text.splitlines() if line]
        # an event without its blank line is never dispatched: a browser would wait, and show no error
        assert broken.text.endswith("}\n\n") and "[DONE]" not in broken.text
        official = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        calls, limit = 0, 5
        with pytest.raises(openai.APIError, match="leaves nothing"):
            list(official.chat.completions.create(**ask(response_format=form, stream=True)))
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["message"] == "the regular expression leaves nothing"
        assert error["type"] == "invalid_request_error"
        check_nothing_is_held(server)
    assert not caplog.records  # it is no fault of the server's


def test_a_step_that_fails_as_a_whole_ends_what_is_under_way(model, caplog):
    def broken_step():
        raise RuntimeError("a fault of the test's own")

    with serving(model) as server, httpx.Client(base_url=server.url) as client:
        model.engine._step = broken_step
        failed = client.post(CHAT, json=ask(max_tokens=4))
        del model.engine._step
        assert failed.status_code == 500
        assert "a fault of the test's own" in caplog.text
        assert client.post(CHAT, json=ask(max_tokens=1)).status_code == 200
        check_nothing_is_held(server)


def test_figures(model):
    """Every number of /metrics, after requests whose counts are known."""
    with serving(model) as server, httpx.Client(base_url=server.url) as client:
        picture = data_url(png((64, 32), "olive"))
        answers = [
            client.post(CHAT, json=ask("Olive?", picture, max_tokens=20)).json(),
            client.post(CHAT, json=ask("Olive?", picture, max_tokens=30)).json(),
            client.post(CHAT, json=ask("?", max_tokens=1, n=2)).json(),
        ]
        with client.stream("POST", CHAT, json=ask(max_tokens=10, stream=True)) as response:
            streamed = response.read()
        client.post(CHAT, json=ask(max_tokens=0))
        client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
        wait_for(lambda: server.service.metrics.running == 0)
        text = client.get("/metrics").text
        prompts = [answer["usage"]["prompt_tokens"] for answer in answers]
        what = len(model.tokenizer.encode(ask()["messages"]).ids)
        assert streamed.count(b"data: ") >= 3
        wanted = {
            'pixedge_requests_total{status="200"}': 4,
            'pixedge_requests_total{status="400"}': 2,
            'pixedge_answers_total{finish="length"}': 5,
            'pixedge_answers_total{finish="cancelled"}': 0,
            "pixedge_prompt_tokens_total": prompts[0] + prompts[1] + 2 * prompts[2] + what,
            "pixedge_picture_tokens_total": 2 * 8,
            "pixedge_pictures_total": 2,
            "pixedge_completion_tokens_total": 20 + 30 + 2 + 10,
            "pixedge_answers_running": 0,
            "pixedge_answers_waiting": 0,
            "pixedge_kv_cache_tokens": model.engine.cache.tokens,
            "pixedge_kv_cache_used_tokens": 0,
            "pixedge_kv_cache_use_ratio": 0,
            "pixedge_time_to_first_token_seconds_count": 5,
            "pixedge_inter_token_seconds_count": 19 + 29 + 0 + 9,
            "pixedge_answer_seconds_count": 5,
            'pixedge_answer_seconds_bucket{le="+Inf"}': 5,
        }
        cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
        assert cached[1] == prompts[0] // 16 * 16 > 0
        wanted["pixedge_cached_prompt_tokens_total"] = sum(cached)
        for name, value in wanted.items():
            assert metric(text, name) == value, name
        assert 0 < metric(text, "pixedge_time_to_first_token_seconds_sum") < 60
        check_nothing_is_held(server)


def test_choices_share_a_long_prompt(model):
    """Of one that is longer than a step, the second choice knows what the first one computed in that."""
    assert model.engine.options.prefill_chunk == 512
    with serving(model) as server, httpx.Client(base_url=server.url) as client:
        body = ask("shared " * 265, max_tokens=1, n=2)
        assert client.post(CHAT, json=body).json()["usage"]["prompt_tokens"] > 512
        text = client.get("/metrics").text
        assert metric(text, "pixedge_cached_prompt_tokens_total") == 512


def test_what_is_streamed_comes_at_once_or_in_frames(model, monkeypatch):
    """A frame of no time gives every token for itself; one without end holds all between first and last."""

    def chunks(server, tokens):
        found = 0
        with httpx.stream("POST", server.url + CHAT, json=ask(max_tokens=tokens, stream=True)) as response:
            for line in response.iter_lines():
                if '"content":"' in line and '"role"' not in line:
                    found += 1
        return found

    with serving(model) as server:
        monkeypatch.setattr(driver, "FRAME", 3600.0)
        assert 1 <= chunks(server, 100) <= 2
        monkeypatch.setattr(driver, "FRAME", 0.0)
        with slowed(model, 0.02):
            # a token that ends within a character has no chunk of its own
            assert 6 <= chunks(server, 12) <= 12


def test_not_ready(model):
    """Before the model has answered once, and when it is about to end."""
    with serving(model) as server, httpx.Client(base_url=server.url) as client:
        for state in ("starting", "draining"):
            server.service.state = state
            health = client.get("/health")
            assert health.status_code == 503 and health.json() == {"status": state}
            refused = client.post(CHAT, json=ask())
            assert refused.status_code == 503 and refused.headers["retry-after"] == "2"
        server.service.state = "ready"
        assert client.get("/health").json() == {"status": "ready"}


def test_a_slow_head_and_a_client_that_does_not_read(model, monkeypatch):
    """The connection is dropped, and what it held is given back: 12 MB of answers fit into no buffer."""
    monkeypatch.setattr("pixedge.serve.connection.Connection.head_seconds", 0.2)
    monkeypatch.setattr("pixedge.serve.connection.Connection.send_seconds", 0.2)

    async def slow_head(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: local")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

    with serving(model) as server, socket.socket() as client:
        asyncio.run(slow_head(server.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        body = json.dumps(ask(max_tokens=500, stream=True, logprobs=True, top_logprobs=20, n=16)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: server.service.chat.held == 16)
        wait_for(lambda: server.service.chat.held == 0)
        check_nothing_is_held(server)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 16):
                received += part
        assert b"[DONE]" not in received


async def one_client(server, client, seed, requests, outcomes):
    """Ask ``requests`` times, and leave at random: while the head, the queue or the answer is on its way."""
    draw = random.Random(seed)
    done = 0
    while done < requests:
        tokens = draw.randint(1, 30)
        pictures = [data_url(png((draw.choice([16, 40, 90]), 32), (seed, tokens, 0)))] * draw.randint(0, 1)
        stream, choices = draw.random() < 0.7, draw.choice([1, 1, 1, 3])
        body = ask(f"{seed}?", *pictures, max_tokens=tokens, stream=stream, n=choices)
        if stream:
            body["stream_options"] = {"include_usage": True}
        patience = draw.choice([None, None, None, draw.random() * 0.5 * draw.randint(0, 1)])
        try:
            async with asyncio.timeout(patience):
                response = await client.post(server.url + CHAT, json=body)
        except TimeoutError:
            outcomes["left"] += 1
            done += 1
            continue
        outcomes[response.status_code] += 1
        if response.status_code == 429:
            await asyncio.sleep(0.05)
            continue
        assert response.status_code == 200, response.text
        done += 1
        if stream:
            *_, last, end = [line for line in response.text.splitlines() if line]
            assert end == "data: [DONE]"
            usage = json.loads(last.removeprefix("data: "))["usage"]
        else:
            usage = response.json()["usage"]
        # nothing of an answer was lost
        assert usage["completion_tokens"] == tokens * choices
        outcomes["tokens"] += usage["completion_tokens"]


async def many_clients(server, count, requests):
    outcomes = Counter()
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        clients = (one_client(server, client, seed, requests, outcomes) for seed in range(count))
        await asyncio.gather(*clients)
    return outcomes


def load(folder, requests):
    """64 clients of the demo, leaving at random: nothing lost, nothing kept, every page returned.

    Gives what came of it, and by how many bytes the process grew beside the pictures' embeddings, which are
    kept up to a limit.
    Its answers go on to their length, so that each one's number of tokens is known.
    """
    model = pixedge.load(folder, device="cpu")
    model.engine.stop_ids = frozenset()
    with serving(model, queue=40) as server:
        asyncio.run(many_clients(server, 64, 1))
        gc.collect()
        threads = other_threads()
        pictures = model.engine.runner.pictures
        resident = _resident() - pictures.held
        outcomes = asyncio.run(many_clients(server, 64, requests))
        check_nothing_is_held(server)
        gc.collect()
        assert other_threads() <= threads
        wait_for(lambda: not server.server_state.tasks)
        text = server.service.metrics.text().decode()
        # one in eight has no patience at all, and three in four have all there is
        assert outcomes["left"] > 0 and outcomes[200] > outcomes["left"]
        assert outcomes[200] + outcomes["left"] == 64 * requests
        assert set(outcomes) <= {200, 429, "left", "tokens"}, outcomes
        assert metric(text, 'pixedge_answers_total{finish="error"}') == 0
        assert metric(text, "pixedge_kv_cache_used_tokens") == 0
        return outcomes, _resident() - pictures.held - resident


def other_threads():
    """Count threads outside of the server's pools, which grow up to their sizes and keep what they have."""
    return sum(not each.name.startswith("pixedge-") for each in threading.enumerate())


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_load(tmp_path_factory):
    load(exported_demo(tmp_path_factory.getbasetemp()), 2)


@pytest.mark.slow
def test_load_for_long(tmp_path_factory):
    """PIXEDGE_LOAD_REQUESTS of each client, 100 unless it says otherwise; memory stays where it was."""
    requests = int(os.environ.get("PIXEDGE_LOAD_REQUESTS", "100"))
    outcomes, growth = load(exported_demo(tmp_path_factory.getbasetemp()), requests)
    print(f"64 clients, {requests} requests each: {dict(outcomes)}, memory {growth / 2**20:+.1f} MiB")
    assert growth < 64 << 20
