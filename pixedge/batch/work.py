"""A batch at work: threads read questions ahead, and the engine answers as many at once as it can.

    inputs ── read ahead (bounded) ── engine: all answers under way get a token a step ── a line for each

Nothing is kept of a question whose line is written, so a batch of a million needs no more memory than one of
a hundred.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pixedge.batch.answer_file import AnswerFile
from pixedge.batch.item import Asked, Inputs, Item
from pixedge.errors import PixedgeError
from pixedge.model import Answer, Draft, Model
from pixedge.serve.errors import Refusal, refusal
from pixedge.serve.replies import Reply

AHEAD_BYTES = 256 << 20
"""Pixels that wait for the engine; reading stops while there are more."""

_READERS = min(4, os.cpu_count() or 1)


@dataclass
class Tally:
    """What came of the items so far, and what they took."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    first_failure: tuple[str, str] | None = None
    """Id and sentence of the first item that failed."""

    @property
    def done(self) -> int:
        """Items that have their line."""
        return self.answered + self.failed


@dataclass
class _Running:
    """An item whose answers are under way."""

    item: Item
    asked: Asked
    drafts: list[Draft] = field(default_factory=list)

    @property
    def waiting(self) -> bool:
        """Whether the engine has not begun with all of it."""
        requests = [draft.request for draft in self.drafts if draft.request is not None]
        return any(not (each.finished or each.pages or each.reserved) for each in requests)


def answer_all(
    model: Model,
    inputs: Inputs,
    todo: Sequence[int],
    file: AnswerFile,
    report: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Answer the items of inputs whose indices todo holds, and append a line for each as it is finished.

    An item that cannot be asked or answered becomes a line with its error. report is told after every line.
    Whatever ends this early, Ctrl-C for one, loses what is under way and nothing else. Raises
    PixedgeError when the file cannot be written.
    """
    tally = Tally()
    running: list[_Running] = []
    with _Ahead(inputs, todo, model) as ahead:
        try:
            while running or ahead.left:
                _admit(model, ahead, running, file, tally, report)
                if not running:
                    continue
                model.engine.step()
                for each in list(running):
                    if _advance(each):
                        running.remove(each)
                        _write(model, each, file, tally)
                        report(tally)
        finally:
            for each in running:
                _cancel(each)
    return tally


class _Ahead:
    """Reads items ahead in their order, as far as memory allows."""

    def __init__(self, inputs: Inputs, todo: Sequence[int], model: Model) -> None:
        self._inputs, self._model = inputs, model
        self._todo: Iterator[int] = iter(todo)
        self._reading: deque[tuple[Item, Future[Asked]]] = deque()
        self._threads = ThreadPoolExecutor(_READERS, "pixedge-reader")
        self.left = len(todo)

    def take(self, wait: bool) -> tuple[Item, Future[Asked]] | None:
        """Give the next item when it is read; None where it is not yet, unless wait, and behind the last."""
        self._fill()
        if not self._reading or not (wait or self._reading[0][1].done()):
            return None
        item, asked = self._reading.popleft()
        asked.exception()  # waits
        self.left -= 1
        self._fill()
        return item, asked

    def _fill(self) -> None:
        held = sum(
            asked.result().bytes
            for _, asked in self._reading
            if asked.done() and not asked.cancelled() and asked.exception() is None
        )
        while len(self._reading) <= _READERS and (held < AHEAD_BYTES or not self._reading):
            index = next(self._todo, None)
            if index is None:
                return
            reading = self._threads.submit(self._inputs.read, index, self._model)
            self._reading.append((self._inputs.items[index], reading))

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _admit(
    model: Model,
    ahead: _Ahead,
    running: list[_Running],
    file: AnswerFile,
    tally: Tally,
    report: Callable[[Tally], None],
) -> None:
    """Give the engine what is read, while it takes it at once; write down what cannot be asked."""
    most = model.engine.options.max_requests
    while sum(len(each.drafts) for each in running) < most and not any(each.waiting for each in running):
        taken = ahead.take(wait=not running)
        if taken is None:
            return
        item, reading = taken
        try:
            each = _Running(item, reading.result())
        except Exception as error:
            _write_failure(item, error, file, tally)
            report(tally)
            continue
        try:
            for params in each.asked.params:
                draft = Draft(model.engine, model.tokenizer, each.asked.prompt, params, each.asked.seconds)
                each.drafts.append(draft)
                draft.submit()
        except Exception as error:
            _cancel(each)
            _write_failure(item, error, file, tally)
            report(tally)
            continue
        running.append(each)


def _advance(each: _Running) -> bool:
    """Take the new tokens of an item's answers; tell whether all of them are complete."""
    for draft in each.drafts:
        request = draft.request
        assert request is not None
        while request.ready and not draft.stopped:
            draft.push(request.ready.popleft())
        if draft.stopped:
            draft.cancel()  # a stop string may have ended it
        if not draft.complete and (draft.stopped or (request.finished and not request.ready)):
            draft.end()
    return all(draft.complete for draft in each.drafts)


def _cancel(each: _Running) -> None:
    for draft in each.drafts:
        draft.cancel()


def _write(model: Model, each: _Running, file: AnswerFile, tally: Tally) -> None:
    """Write an item's line: its answers, or the error that ended one of them."""
    requests = [draft.request for draft in each.drafts if draft.request is not None]
    error = next((request.error for request in requests if request.error is not None), None)
    if error is not None:
        _write_failure(each.item, error, file, tally)
        return
    answers = [draft.answer() for draft in each.drafts]
    reply = Reply(model.folder.name, model.tokenizer, logprobs=each.asked.logprobs)
    reply.id = f"chatcmpl-{_stable(each.item)}"
    response = {"status_code": 200, "request_id": f"req_{_stable(each.item)}", "body": reply.whole(answers)}
    file.append(each.item.id, each.item.digest, False, _line(each.item, response, None))
    tally.answered += 1
    _count(tally, answers)


def _count(tally: Tally, answers: Sequence[Answer]) -> None:
    tally.prompt_tokens += answers[0].prompt_tokens
    tally.image_tokens += answers[0].image_tokens
    tally.completion_tokens += sum(answer.completion_tokens for answer in answers)


def _write_failure(item: Item, error: BaseException, file: AnswerFile, tally: Tally) -> None:
    if not isinstance(error, (PixedgeError, Refusal)):
        # A fault of pixedge, or a machine that ran out of something; the batch goes on all the same.
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        error = Refusal(500, f"this item failed unexpectedly ({text})", code="internal_error")
    refused = refusal(error)
    response = {"status_code": refused.status, "request_id": f"req_{_stable(item)}", "body": refused.body()}
    short = {"code": refused.code or "invalid_request", "message": refused.message}
    file.append(item.id, item.digest, True, _line(item, response, short))
    tally.failed += 1
    if tally.first_failure is None:
        tally.first_failure = (item.id, refused.message)


def _line(item: Item, response: dict[str, Any], error: dict[str, Any] | None) -> dict[str, Any]:
    return {"id": f"batch_req_{_stable(item)}", "custom_id": item.id, "response": response, "error": error}


def _stable(item: Item) -> str:
    """Return an id that an item has in every run."""
    return hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
