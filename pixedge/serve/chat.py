"""One chat completion: from the body of a request to its answer, whole or as a stream of events."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar, cast

from starlette.requests import Request
from starlette.responses import Response

from pixedge.answer_format import AnswerFormat
from pixedge.errors import PixedgeError, UsageError
from pixedge.format_trial import is_small
from pixedge.messages import Messages
from pixedge.model import Draft, Model
from pixedge.sampling import SamplingParams
from pixedge.serve.body import SMALL_BODY, Gone, read_body
from pixedge.serve.body_json import TOO_LONG, JsonBody
from pixedge.serve.chat_request import ChatRequest, parse
from pixedge.serve.driver import Driver, Job, Piece
from pixedge.serve.errors import Refusal, json_response, refusal
from pixedge.serve.media import has_pictures, read_pictures
from pixedge.serve.metrics import Metrics
from pixedge.serve.replies import PROGRESS, Reply, error_event, stage_comment
from pixedge.serve.room import Held, Room, busy
from pixedge.serve.settings import Settings
from pixedge.serve.stream import EventStream, watched
from pixedge.tokenizer import Prompt

T = TypeVar("T")

_LOG = logging.getLogger("pixedge.serve")

# Up to so many characters text is always split into tokens and they are counted; more where the context is
# large, sixteen for each of its tokens: usual text has four.
_MANY_CHARACTERS = 1 << 20

# Processor time that compiling a format may take for all choices of a request.
_FORMAT_SECONDS = 2.0

# Threads that build prompts of text alone, which never wait for pictures.
_READERS = 2

# Threads in which requests with pictures wait for these, and then build their prompts: enough that pictures
# which take long do not hold them all. What waits is bounded by the bytes that it holds.
_PICTURE_READERS = 64


class Chat:
    """Everything that requests share: the model, the thread that steps it, the queue and its limits."""

    def __init__(self, model: Model, driver: Driver, metrics: Metrics, settings: Settings) -> None:
        """Prepare to answer; the driver is started by whoever made it."""
        self._model, self._driver, self._metrics, self._settings = model, driver, metrics, settings
        self._readers = ThreadPoolExecutor(_READERS, "pixedge-reader")
        self._picture_readers = ThreadPoolExecutor(_PICTURE_READERS, "pixedge-picture-reader")
        # large bodies are parsed, and large texts split into tokens, one at a time: nobody else waits for it,
        # and what it takes beside the bodies that wait is bounded
        self._parser = ThreadPoolExecutor(1, "pixedge-parser")
        # what is small is compiled at once; the rest waits for a trial, one after the other
        self._formats = ThreadPoolExecutor(2, "pixedge-small-format")
        self._trials = ThreadPoolExecutor(1, "pixedge-trial")
        self._room = Room(settings.waiting_bytes)
        self._held = 0
        self._names = {name.casefold() for name in settings.names}

    @property
    def held(self) -> int:
        """Answers asked for and not ended."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """Bytes that requests hold: bodies, what was read of them, pictures."""
        return self._room.held

    def close(self) -> None:
        """End the threads, once nothing is under way."""
        readers = (self._readers, self._picture_readers, self._parser)
        for threads in (*readers, self._formats, self._trials):
            threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: Request) -> Response:
        """Answer a request, or raise Refusal; Gone when the client left before its answer began."""
        arrived = time.perf_counter()
        self._check_queue(1)
        held = Held(self._room)
        try:
            asked = await self._read(request, held)
            self._check(asked)
            slot = _Slot(self, asked.choices, held)
        except BaseException:
            held.close()
            raise
        try:
            async with watched(request.receive, slot.leave, at_end=False):
                watched_stages = asked.stream and request.headers.get(PROGRESS) == "1"
                job = await self._start(asked, arrived, slot, watched_stages)
                pieces = await job.pieces()
            if job.cancelled:
                raise Gone
            reply = Reply(
                self._settings.names[0],
                self._model.tokenizer,
                logprobs=asked.logprobs,
                include_usage=asked.include_usage,
            )
            _raise_failure(asked, pieces)
            if asked.stream:
                return EventStream(self._events(asked, reply, job, pieces), slot.close)
            async with watched(request.receive, slot.leave, at_end=False):
                while pieces := await job.pieces():
                    _raise_failure(asked, pieces)
            if job.cancelled:
                raise Gone
            slot.close()
            return json_response(reply.whole([draft.answer() for draft in job.drafts]))
        except BaseException:
            slot.close()
            raise

    # Before the answer

    async def _read(self, request: Request, held: Held) -> ChatRequest:
        body = await read_body(request, self._settings, held)
        held.large = len(body) > SMALL_BODY
        if not held.large:
            return self._parse(body, held)
        # in a thread, so that other answers go on meanwhile
        return await asyncio.get_running_loop().run_in_executor(self._parser, self._parse, body, held)

    def _parse(self, body: bytearray, held: Held) -> ChatRequest:
        """Read the fields; what they take is held from now on, in place of the body."""
        small = not held.large
        # usual text has four characters a token
        most = max(_MANY_CHARACTERS, 16 * self._model.config.decoder.context)
        found = JsonBody(body, most)
        held.set(len(body) + found.parsing_bytes, always=small)
        asked = parse(found.parse())
        self._check_text(asked.messages, most)
        held.set(found.parsed_bytes, always=small)
        return asked

    def _check(self, asked: ChatRequest) -> None:
        """Refuse another model's name, and more choices than there can ever be."""
        # an owner before the name, as on the hub, makes no difference
        if self._names.isdisjoint((asked.model.casefold(), asked.model.rpartition("/")[2].casefold())):
            message = (
                f"the model {asked.model[:80]!r} is not served here; ask for {self._settings.names[0]!r}"
            )
            raise Refusal(404, message, param="model", code="model_not_found")
        most = self._model.engine.options.max_requests + self._settings.queue
        if asked.choices > most:
            message = f"n is {asked.choices} and this server takes {most} answers at a time; ask for fewer"
            raise Refusal(400, message, param="n", code="invalid_value")

    async def _start(self, asked: ChatRequest, arrived: float, slot: "_Slot", stages: bool) -> Job:
        """Build the prompt and queue it once for each choice."""
        start = time.perf_counter()
        readers = self._parser if slot.held.large else self._readers
        if has_pictures(asked.messages):
            readers = self._picture_readers
        prompt = await self._in_thread(self._prompt, asked, slot.held, threads=readers)
        seconds = time.perf_counter() - start
        params = self._fit(prompt, asked)
        drafts = await self._in_thread(
            self._drafts, asked, prompt, params, seconds, threads=self._drafters(asked)
        )
        slot.job = job = Job(
            drafts, arrived, asyncio.get_running_loop(), stream=asked.stream, logprobs=asked.logprobs
        )
        if stages:
            job.watch_stages()
        if slot.left:
            raise Gone
        await self._in_thread(self._driver.submit, job)
        return job

    def _drafts(
        self, asked: ChatRequest, prompt: Prompt, params: SamplingParams, seconds: float
    ) -> list[Draft]:
        """Prepare each choice, and what it must match; in a thread."""
        model = self._model
        try:
            if asked.form is not None:
                params = replace(params, answer_format=AnswerFormat(*asked.form))
            drafts: list[Draft] = []
            for index in range(asked.choices):
                choice = asked.choice_params(params, index)
                drafts.append(Draft(model.engine, model.tokenizer, prompt, choice, seconds))
                if (cost := drafts[0].format_seconds) * asked.choices > _FORMAT_SECONDS:
                    raise UsageError(
                        f"n is {asked.choices} and the format takes {cost:.2f} s of processor time for each,"
                        f" above {_FORMAT_SECONDS:g} s together; ask for fewer answers or make it simpler"
                    )
            return drafts
        except UsageError as error:
            raise refusal(error, "response_format") from None

    def _drafters(self, asked: ChatRequest) -> ThreadPoolExecutor:
        """Return the threads that prepare choices: nobody waits for another one's format."""
        if asked.form is None:
            return self._readers
        return self._formats if is_small(*asked.form) else self._trials

    def _prompt(self, asked: ChatRequest, held: Held) -> Prompt:
        """Read the pictures and build the token ids; in a thread. The messages are no more after it."""
        text, vision = held.count, self._model.config.vision
        sizes = (asked.max_image_size, self._model.max_image_size, vision.image_size)
        longest = min(size for size in sizes if size is not None)
        messages = read_pictures(
            asked.messages,
            self._settings.media,
            (longest, vision.patch_size),
            lambda pictures: held.set(text + pictures),
        )
        prompt = self._model.tokenizer.encode(cast(Messages, messages), longest, self._settings.media.limits)
        asked.messages.clear()
        held.set(sum(image.nbytes for image in prompt.images))
        return prompt

    def _check_text(self, messages: Sequence[Any], limit: int) -> None:
        """Refuse text that is far too long before it is split into tokens, which takes memory and time."""
        count = 0
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else [content]:
                text = part.get("text") if isinstance(part, dict) else part
                count += len(text) if isinstance(text, str) else 0
        if count > limit:
            raise Refusal(
                400,
                f"the messages hold {count:,} characters and the limit is {limit:,}; send less text",
                param="messages",
                code=TOO_LONG,
            )

    def _fit(self, prompt: Prompt, asked: ChatRequest) -> SamplingParams:
        """Refuse what can never fit, with both numbers; give the sampling with how long the answer may be."""
        engine, params, cap = self._model.engine, asked.params, self._settings.max_tokens
        count = len(prompt.ids)
        size = f"the prompt has {count:,} tokens, {prompt.n_image_tokens:,} of them from pictures"
        context, cache = engine.config.decoder.context, engine.cache.tokens
        advice = "send fewer or smaller pictures (max_image_size) or less text"
        if count >= min(context, cache + 1):
            limit = f"the context holds {min(context, cache):,}, one of them for the answer"
            raise Refusal(400, f"{size}, and {limit}; {advice}", param="messages", code=TOO_LONG)
        longest = params.max_tokens
        if not asked.max_tokens_given:
            longest = min(longest, cap or longest, cache + 1 - count)
        elif cap is not None and longest > cap:
            message = f"max_tokens is {longest:,} and this server gives up to {cap:,}; ask for less"
            raise Refusal(400, message, param="max_tokens", code="invalid_value")
        if count + min(longest, context - count) - 1 > cache:
            message = f"{size}, which with an answer of up to {longest:,} exceeds the cache of {cache:,}"
            raise Refusal(
                400, f"{message}; ask for a shorter answer, or {advice}", param="max_tokens", code=TOO_LONG
            )
        return replace(params, max_tokens=longest)

    def _check_queue(self, choices: int) -> None:
        """Refuse what would wait behind too much."""
        running = self._model.engine.options.max_requests
        if self._held + choices > running + self._settings.queue:
            seconds = self._metrics.whole.mean * self._held / running
            raise busy(
                f"{self._held} answers are under way or wait, and {running + self._settings.queue} may",
                min(60, max(1, round(seconds))),
            )

    async def _in_thread(
        self, function: Callable[..., T], *arguments: object, threads: ThreadPoolExecutor | None = None
    ) -> T:
        threads = threads or self._readers
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    # The answer

    async def _events(
        self, asked: ChatRequest, reply: Reply, job: Job, pieces: list[Piece]
    ) -> AsyncIterator[bytes]:
        """Give a stream's events, those that came together as one."""
        data = [reply.first(index) for index in range(len(job.drafts))]
        while pieces:
            try:
                _raise_failure(asked, pieces)
            except Refusal as error:
                yield b"".join([*data, error_event(error.body())])
                return
            for piece in pieces:
                if piece.stage is not None:
                    data.append(stage_comment(piece.stage))
                if piece.text or piece.tokens:
                    data.append(reply.piece(piece.choice, piece.text, piece.tokens))
                if piece.ended:
                    data.append(reply.last(piece.choice, job.drafts[piece.choice].finish_reason))
            if job.ended:
                break
            yield b"".join(data)
            data = []
            pieces = await job.pieces()
        data.append(reply.end([draft.answer() for draft in job.drafts]))
        yield b"".join(data)


def _raise_failure(asked: ChatRequest, pieces: Sequence[Piece]) -> None:
    """Raise Refusal for the first choice that failed, if one did."""
    for piece in pieces:
        if piece.error is not None:
            raise _failure(asked, piece.error)


def _failure(asked: ChatRequest, error: Exception) -> Exception:
    """Give what to raise for a failed choice.

    Not the error that its piece keeps: the traceback would keep the piece in turn.
    """
    found = refusal(error)
    if asked.form is not None and type(error) is PixedgeError:
        # what the format asked for turned out to be impossible, or too much
        return Refusal(400, found.message, param="response_format", code="invalid_value")
    if found.status == 500:
        _LOG.error("an answer failed", exc_info=error)
    return found.again()


class _Slot:
    """What one request holds of the queue and of the room, given back once."""

    def __init__(self, chat: Chat, choices: int, held: Held) -> None:
        chat._check_queue(choices)
        chat._held += choices
        self.job: Job | None = None
        self.left = False
        self.held = held
        self._chat, self._choices = chat, choices

    def leave(self) -> None:
        """Note that nobody waits for the answer any more."""
        self.left = True
        if self.job is not None:
            self._chat._driver.cancel(self.job)

    def close(self) -> None:
        """Give everything back, and let nothing more be computed."""
        if self._choices:
            self.leave()
            self._chat._held -= self._choices
            self._choices = 0
            self.held.close()
