"""Faults at every step of the engine's thread: nobody waits for ever, /health tells it, the process ends.

A fault outside of Engine.step ended the thread without a word: every request hung, /health said "ready", and
SIGTERM waited for answers that never came.
"""

import asyncio
import linecache
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from pixedge.model import Draft
from pixedge.sampling import SamplingParams
from pixedge.serve import driver as driver_module
from pixedge.serve.driver import Driver, Job
from pixedge.serve.errors import Refusal
from pixedge.serve.metrics import Metrics
from tests.doors import small_model
from tests.exported_demo import ROOT, environment
from tests.serving import CHAT, ask, serving, wait_for
from tests.small_exports import small_export


class InjectedFault(Exception):
    """A fault of the test's own."""


class FaultAtLine:
    """A trace function that raises the first time that a line of driver.py is reached in the thread.

    ``line`` None raises nowhere and notes the lines that there are.
    """

    def __init__(self, line):
        self.line, self.seen, self.raised = line, {}, False

    def __call__(self, frame, event, argument):
        name = frame.f_code.co_name
        if frame.f_code.co_filename != driver_module.__file__ or name in ("_die", "_lose", "_lose_arrivals"):
            return None
        return self.on_line

    def on_line(self, frame, event, argument):
        if event == "line":
            self.seen.setdefault(frame.f_lineno, frame.f_code.co_name)
            if frame.f_lineno == self.line and not self.raised:
                self.raised = True
                raise InjectedFault(f"{frame.f_code.co_name}, line {frame.f_lineno}")
        return self.on_line


def answers(model, trace, monkeypatch):
    """Run a driver with three requests, one of them late and one whose client leaves, under a fault.

    Gives its failure, and for each request whether all of its choices ended and the errors they had.
    """
    failures, results = [], []

    async def one(driver, stream, choices, tokens, *, leave=False):
        prompt = model.tokenizer.encode([{"role": "user", "content": "What?"}])
        params = SamplingParams(max_tokens=tokens)
        drafts = [Draft(model.engine, model.tokenizer, prompt, params) for _ in range(choices)]
        job = Job(drafts, time.perf_counter(), asyncio.get_running_loop(), stream=stream)
        errors = []
        try:
            driver.submit(job)
        except Refusal as error:
            return [error]
        if leave:
            driver.cancel(job)
        async with asyncio.timeout(30):
            while pieces := await job.pieces():
                errors += [piece.error for piece in pieces if piece.error is not None]
        assert job.ended
        return errors

    async def run():
        driver = Driver(model.engine, Metrics(model.engine, ("small",)), lambda: failures.append(1))
        monkeypatch.setattr(threading, "_trace_hook", trace)
        driver.start(asyncio.get_running_loop())
        threading.settrace(None)
        first = asyncio.gather(
            one(driver, True, 2, 6), one(driver, False, 1, 3), one(driver, False, 1, 6, leave=True)
        )
        results.extend(await first)
        results.append(await one(driver, True, 1, 2))
        await asyncio.to_thread(driver.stop)
        assert not driver._thread.is_alive()

    asyncio.run(run())
    return bool(failures), results


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.getbasetemp())


def lines(model, monkeypatch):
    trace = FaultAtLine(None)
    failed, results = answers(model, trace, monkeypatch)
    assert not failed and results == [[], [], [], []]
    return trace.seen


def test_a_fault_at_every_line_of_the_loop(model, monkeypatch, caplog):
    """Every request ends, whichever line of the thread's functions raises."""
    seen = lines(model, monkeypatch)
    assert {"_run", "_turn", "_collect", "_take", "_count_prompt", "_end", "_hand_over"} <= set(seen.values())
    assert len(seen) > 60
    for line in seen:
        if linecache.getline(driver_module.__file__, line).strip() == "try:":  # nothing is computed there
            continue
        trace = FaultAtLine(line)
        caplog.clear()
        failed, results = answers(model, trace, monkeypatch)
        assert trace.raised or not failed
        if not trace.raised:  # a line that depends on how threads take turns
            continue
        assert InjectedFault.__name__ in caplog.text
        late = results[-1]
        if failed:  # all but those that were complete had an error, and what came later was refused
            assert any(results[:-1]) or not late
            assert not late or late[0].status == 503
        else:  # a step of the engine, after which it goes on
            assert seen[line] == "_turn" and "a step of the engine failed" in caplog.text
            assert late == []
        pages = model.engine.cache.pages
        assert pages.available == pages.count


def test_an_engine_that_fails_for_good_is_found_out_without_a_request(model, monkeypatch, caplog):
    """One failed step may be an accident; when the engine then cannot compute one token it has failed."""
    monkeypatch.setattr(driver_module, "_TRIAL", 0.05)
    with serving(model) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        monkeypatch.setattr(model.engine, "_step", None)
        assert client.post(CHAT, json=ask(max_tokens=4)).status_code == 500
        wait_for(lambda: client.get("/health").json() == {"status": "failed"})
        monkeypatch.undo()
        refused = client.post(CHAT, json=ask(max_tokens=4))
        assert refused.status_code == 503 and "restart the server" in refused.json()["error"]["message"]
        for request in [*model.engine._active, *model.engine._waiting]:
            model.engine.cancel(request)


def test_an_engine_that_fails_once_goes_on(model, monkeypatch, caplog):
    monkeypatch.setattr(driver_module, "_TRIAL", 0.05)
    with serving(model) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        monkeypatch.setattr(model.engine, "_step", None)
        assert client.post(CHAT, json=ask(max_tokens=4)).status_code == 500
        monkeypatch.undo()
        wait_for(lambda: not server.service.driver._suspect)
        assert client.get("/health").json() == {"status": "ready"}
        assert client.post(CHAT, json=ask(max_tokens=4)).status_code == 200


_FAULTY = """
from pixedge.cli import main
from pixedge.serve.driver import Driver
count = 0
usual = Driver.{name}
def faulty(self, *arguments):
    global count
    count += 1
    if count > 20:
        raise KeyError("a fault of the test's own")
    return usual(self, *arguments)
Driver.{name} = faulty
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_process_without_its_thread_says_so_and_ends(tmp_path_factory, number, code):
    base = tmp_path_factory.getbasetemp()
    command = [sys.executable, "-c", _FAULTY.format(name="_collect"), "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--model", str(small_export(base)), "--device", "cpu", "--threads", "1"],
        cwd=ROOT,
        env=environment(base) | {"PIXEDGE_API_KEY": ""},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stderr.readline().split(" at ")[1].strip()
        with httpx.Client(base_url=url, timeout=30) as client:
            wait_for(lambda: client.get("/health").status_code == 200)
            body = ask(max_tokens=500, stream=True) | {"model": "small-pixedge-4bit"}
            answer = client.post(CHAT, json=body)
            assert '"code": "failed"' in answer.text.splitlines()[-2]
            health = client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "failed"})
            assert client.post(CHAT, json=body).status_code == 503
            assert client.get("/v1/models").status_code == 200
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
        assert process.returncode == code
        assert "the engine's thread failed" in said and "a fault of the test's own" in said
    finally:
        process.kill()
        process.wait()
