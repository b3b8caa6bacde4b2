"""The one thread that steps the engine while there is work, and hands what comes to the event loop.

Answers' tokens are taken and turned into text here, between two steps. The event loop is called once for all
answers together, and not for every step: text that is less than FRAME seconds old waits for more, because a
call into the loop and a write to a socket cost as much as a token of a small model, and nobody reads faster.
An answer's first text and its end are handed over at once.

A fault anywhere in the thread ends every request with an error and is reported, so nobody waits for a thread
that is no more.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pixedge.engine import Engine
from pixedge.model import Draft
from pixedge.prompt import Prompt
from pixedge.request import Request
from pixedge.sampling import SampledToken, Sampler, SamplingParams
from pixedge.serve.errors import Refusal
from pixedge.serve.metrics import Metrics
from pixedge.stage import Stage

FRAME = 0.02

# After a step that failed, an idle engine is tried after so many seconds.
_TRIAL = 1.0

_LOG = logging.getLogger("pixedge.serve")


@dataclass
class Piece:
    """What came of one choice since the last piece; ended is set on its last one."""

    choice: int
    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    ended: bool = False
    error: Exception | None = None
    stage: Stage | None = None
    """What begins now, before the choice's first token; such a piece holds nothing else."""


class Job:
    """The choices of one request; the driver fills it, the event loop reads ``pieces``."""

    def __init__(
        self,
        drafts: Sequence[Draft],
        arrived: float,
        loop: asyncio.AbstractEventLoop,
        *,
        stream: bool = False,
        logprobs: bool = False,
    ) -> None:
        """Take the answers to be made; arrived is when the request came, by time.perf_counter.

        Without ``stream`` each choice has one piece, its last, and the answer is the draft's; with it, and
        ``logprobs``, pieces hold their tokens.
        """
        self.drafts = tuple(drafts)
        self.arrived, self.stream, self.logprobs = arrived, stream, logprobs
        self._loop = loop
        self._pieces: list[Piece] = []
        self._waiter: asyncio.Future[None] | None = None
        self._open = len(self.drafts)  # choices whose last piece was not taken
        self._unended = set(range(len(self.drafts)))  # choices whose last piece was not delivered
        self.cancelled = False

    async def pieces(self) -> list[Piece]:
        """Wait for the next pieces, at least one; none behind the end of the last choice."""
        while not self._pieces:
            if self._open == 0:
                return []
            self._waiter = self._loop.create_future()
            await self._waiter
        taken, self._pieces = self._pieces, []
        self._open -= sum(piece.ended for piece in taken)
        return taken

    @property
    def ended(self) -> bool:
        """Whether the last pieces of all choices were taken."""
        return self._open == 0

    def watch_stages(self) -> None:
        """Let ``pieces`` give the stages of the first choice too; before it is submitted."""

        def tell(stage: Stage) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.deliver, Piece(0, stage=stage))

        self.drafts[0].on_stage = tell

    def deliver(self, piece: Piece) -> None:
        """Take a piece, unless its choice has ended; called in the event loop."""
        if piece.choice not in self._unended:
            return
        if piece.ended:
            self._unended.remove(piece.choice)
        self._pieces.append(piece)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass
class _Choice:
    """An answer under way as the driver sees it."""

    job: Job
    draft: Draft
    request: Request
    pending: Piece
    first: bool = True
    last_token: float = 0.0
    error: Exception | None = None


class Driver:
    """Owns the engine's steps from ``start`` to ``stop``."""

    def __init__(
        self, engine: Engine, metrics: Metrics, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare the thread; on_failure is called in the event loop if it ends by a fault."""
        self.engine, self.metrics = engine, metrics
        self._on_failure = on_failure
        self._failed = False
        self._suspect = False  # whether the last step failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrivals: deque[_Choice] = deque()
        self._choices: list[_Choice] = []
        self._ready: list[tuple[Job, Piece]] = []
        self._handed = 0.0
        self._wake = threading.Event()
        self._ending = False
        self._refusal: Callable[[], Refusal] | None = None  # of what is submitted from now on
        self._thread = threading.Thread(target=self._run, name="pixedge-engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to step; pieces are delivered in ``loop``."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Cancel what is under way and end the thread; waits for the step under way."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue all of a job's choices, or none; any thread may call.

        Raises what Engine.submit raises, and Refusal after ``cancel_all`` or a fault of the thread.
        """
        if self._refusal is not None:
            raise self._refusal()
        try:
            choices = [
                _Choice(job, draft, draft.submit(), Piece(index)) for index, draft in enumerate(job.drafts)
            ]
        except BaseException:
            self.cancel(job)
            raise
        self._arrivals.extend(choices)
        self._wake.set()
        if job.cancelled:  # meanwhile
            self.cancel(job)
        if self._failed:  # meanwhile
            self._lose_arrivals()

    def cancel(self, job: Job) -> None:
        """Let nothing more be computed for a job, from the next step on; any thread may call."""
        job.cancelled = True
        for draft in job.drafts:
            draft.cancel()
        self._wake.set()

    def cancel_all(self, refusal: Callable[[], Refusal]) -> None:
        """End everything under way, and all that is submitted later, with a refusal; any thread may call."""
        self._refusal = refusal
        for choice in [*self._choices, *self._arrivals]:
            choice.error = refusal()
            choice.draft.cancel()
        self._wake.set()

    # In the thread

    def _run(self) -> None:
        try:
            while not self._ending:
                self._turn()
            for choice in self._choices:
                choice.draft.cancel()
        except BaseException:
            _LOG.exception("the engine's thread failed; no more answers are given until a restart")
            self._die()

    def _turn(self) -> None:
        """Take one step, or wait until there is something to do."""
        while self._arrivals:
            self._choices.append(self._arrivals.popleft())
        if not self._choices:
            self._hand_over()
            if not self._wake.wait(_TRIAL if self._suspect else None):
                self._try_engine()
            self._wake.clear()
            return
        try:
            self.engine.step()
        except Exception:
            # Not an answer's own error, which the engine keeps with it: nobody's state is to be trusted.
            if self._suspect:
                raise  # nor will the next step be better
            self._suspect = True
            _LOG.exception("a step of the engine failed")
            self._fail()
        else:
            self._suspect = False
        self._collect()

    def _fail(self) -> None:
        for choice in self._choices:
            choice.error = RuntimeError("the engine failed while it computed this answer")
            choice.draft.cancel()

    def _try_engine(self) -> None:
        """Compute one token; raises what keeps the engine from it."""
        request = self.engine.submit(Prompt((1,), (), 0), Sampler(SamplingParams(max_tokens=1)))
        while not (request.finished or self._ending):
            self.engine.step()
        if request.error is not None:
            raise request.error
        self._suspect = False

    def _die(self) -> None:
        """End all requests with an error; what the fault left behind is not relied on."""
        self._refusal = engine_failed
        self._failed = True  # before the arrivals are taken: submit looks at it after it has added some
        self._call(self._on_failure)
        self._call(_deliver, self._ready)
        for choice in self._choices:
            self._lose(choice)
        self._choices = []
        self._lose_arrivals()

    def _lose_arrivals(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._lose(self._arrivals.popleft())

    def _lose(self, choice: _Choice) -> None:
        with contextlib.suppress(Exception):
            choice.draft.cancel()
        lost = Piece(choice.pending.choice, ended=True, error=choice.error or engine_failed())
        self._call(choice.job.deliver, lost)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have something called in the event loop; if that is closed, nobody is left who waits."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._ending = True

    def _collect(self) -> None:
        """Take the step's tokens, and hand text over when it is due."""
        now = time.perf_counter()
        urgent, ended = False, False
        running = 0
        for choice in self._choices:
            request = choice.request
            if request.ready:
                urgent |= choice.first
                self._take(choice, now)
            if (request.finished and not request.ready) or choice.draft.stopped:
                self._end(choice, now)
                ended = True
            else:
                running += bool(request.pages or request.reserved)
        if ended:
            self._choices = [choice for choice in self._choices if not choice.pending.ended]
        self.metrics.running, self.metrics.waiting = running, len(self._choices) - running
        if urgent or ended or now - self._handed >= FRAME:
            self._hand_over()
            self._handed = now

    def _take(self, choice: _Choice, now: float) -> None:
        """Turn an answer's new tokens into text."""
        request, draft, pending = choice.request, choice.draft, choice.pending
        metrics = self.metrics
        if choice.first:
            choice.first = False
            self._count_prompt(choice)
            metrics.first_token.add(now - choice.job.arrived)
        else:
            metrics.between.add((now - choice.last_token) / len(request.ready), len(request.ready))
        choice.last_token = now
        while request.ready and not draft.stopped:
            token = request.ready.popleft()
            metrics.completion_tokens += 1
            text = draft.push(token)  # a whole answer is the draft's
            if choice.job.stream:
                pending.text += text
                if choice.job.logprobs:
                    pending.tokens.append(token)

    def _count_prompt(self, choice: _Choice) -> None:
        metrics, request = self.metrics, choice.request
        metrics.prompt_tokens += len(request.prompt.ids)
        metrics.picture_tokens += request.prompt.n_image_tokens
        metrics.pictures += len(request.prompt.images)
        metrics.cached_tokens += request.cached

    def _end(self, choice: _Choice, now: float) -> None:
        """End an answer: it was complete, it was cancelled, or it failed."""
        pending, request = choice.pending, choice.request
        choice.draft.cancel()  # where a stop string ended it
        pending.text += choice.draft.end()
        pending.error = choice.error or request.error
        request.error = None  # its traceback holds frames of the engine, which hold the request
        pending.ended = True
        self._ready.append((choice.job, pending))
        if pending.error is not None:
            finish = "error"
        elif choice.job.cancelled:
            finish = "cancelled"
        else:
            finish = choice.draft.finish_reason
            self.metrics.whole.add(now - choice.job.arrived)
        self.metrics.ended[finish] += 1

    def _hand_over(self) -> None:
        """Give the event loop everything that waits, in one call."""
        for choice in self._choices:
            pending = choice.pending
            if choice.job.stream and (pending.text or pending.tokens):
                self._ready.append((choice.job, pending))
                choice.pending = Piece(pending.choice)
        if self._ready:
            self._call(_deliver, self._ready)
            self._ready = []  # only now: what was not handed over is not forgotten


def _deliver(ready: list[tuple[Job, Piece]]) -> None:
    for job, piece in ready:
        job.deliver(piece)


def engine_failed() -> Refusal:
    """Give the refusal of a server whose engine is no more."""
    return Refusal(503, "the engine failed and gives no more answers; restart the server", code="failed")
