"""A loaded model: conversations in, text out.

>>> import pixedge                                                     # doctest: +SKIP
>>> model = pixedge.load("models/demo-pixedge-4bit")                   # doctest: +SKIP
"""

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pixedge.answer_format import AnswerFormat
from pixedge.config import ModelConfig
from pixedge.engine import Engine
from pixedge.image import ImageLimits
from pixedge.messages import Messages
from pixedge.plan import Plan
from pixedge.request import Request, Stopwatch
from pixedge.sampling import SampledToken, Sampler, SamplingParams, StopStrings
from pixedge.stage import OnStage
from pixedge.tokenizer import Prompt, TextStream, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Timings:
    """Seconds by stage of one answer.

    image_decode: reading and resizing the pictures and building the token ids. encode: the vision encoder.
    prefill: the prompt through the decoder. first_token: all of these and the choice of the first token.
    decode: from the first token to the last. What other requests took of the same steps is counted, the time
    that a reader takes between two pieces is not (see pixedge.request.Stopwatch).
    """

    image_decode: float
    encode: float
    prefill: float
    first_token: float
    decode: float


@dataclass(frozen=True)
class Answer:
    """What the model said and what it took.

    finish_reason is "stop" when the model, a stop string or ``Stream.close`` ended the text, "length" when
    max_tokens or the context did. image_tokens counts the [IMG] tokens among prompt_tokens, cached_tokens
    those that were known from earlier requests and not computed. tokens are those that the model chose, with
    the id that ended the answer and with what a stop string cut from the text.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens: tuple[SampledToken, ...]
    seed: int
    timings: Timings

    @property
    def tokens_per_second(self) -> float | None:
        """Decode rate after the first token; None when there was only one."""
        return (self.completion_tokens - 1) / self.timings.decode if self.completion_tokens > 1 else None


class Stream:
    """An answer in the making: iterate for its text in whole characters; ``answer`` then holds all of it.

    Nothing is computed before the first piece is asked for. Streams may be read side by side, each by a
    thread of its own or in turn: every step that one of them asks for brings all of them on. A stream that is
    dropped or closed early frees its part of the cache.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt: Prompt,
        params: SamplingParams,
        image_decode: float = 0.0,
        on_stage: OnStage | None = None,
    ) -> None:
        """Prepare the answer to a prompt that took ``image_decode`` seconds to build."""
        self._draft = Draft(engine, tokenizer, prompt, params, image_decode)
        self._draft.on_stage = on_stage
        self._pieces = self._draft.pieces()

    def __iter__(self) -> Iterator[str]:
        """Give the pieces of text."""
        return self._pieces

    def close(self) -> None:
        """End the answer here; ``answer`` holds what was said so far.

        Another thread that is reading the stream gets no more pieces, and completes the answer.
        """
        self._draft.cancel()
        try:
            self._pieces.close()
        except ValueError:  # another thread is in it
            return
        if not self._draft.complete:
            self._draft.finish_reason, self._draft.complete = "stop", True

    @property
    def answer(self) -> Answer:
        """The complete answer, once the pieces are exhausted or the stream is closed."""
        assert self._draft.complete, "read the stream to its end first, or close it"
        return self._draft.answer()


class Draft:
    """What is known about an answer so far: it takes the tokens one by one and gives the text they complete.

    Apart from the stream, so that a dropped stream is no reference cycle, and so that a server, which steps
    the engine for many answers at once, takes their tokens in the same way.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt: Prompt,
        params: SamplingParams,
        image_decode: float = 0.0,
    ) -> None:
        """Prepare the answer to a prompt that took ``image_decode`` seconds to build."""
        self.finish_reason: FinishReason = "length"
        self.complete = False
        self.stopped = False
        """Whether a stop id or a stop string came: no more tokens are wanted."""
        self.request: Request | None = None
        self.on_stage: OnStage | None = None
        """Told what goes on before the first token; set it before ``submit``."""
        self._engine = engine
        self._prompt = prompt
        self._sampler = Sampler(params, prompt.ids, tokenizer.constraint(params.answer_format))
        self._text = TextStream(tokenizer)
        self._stops = StopStrings(params.stop)
        self._tokens: list[SampledToken] = []
        self._said: list[str] = []
        self._image_decode = image_decode

    @property
    def format_seconds(self) -> float:
        """Processor time, in seconds, that compiling the answer's format took; 0 without one."""
        return self._sampler.constraint.seconds if self._sampler.constraint else 0.0

    def submit(self) -> Request:
        """Queue the prompt; raises what ``Engine.submit`` raises."""
        self.request = self._engine.submit(self._prompt, self._sampler, self.on_stage)
        return self.request

    def push(self, token: SampledToken) -> str:
        """Take the next token and give the text that is certain now, perhaps none."""
        self._tokens.append(token)
        piece = self._stops.push(self._text.push(token.id))
        if token.id in self._engine.stop_ids or self._stops.matched is not None:
            self.finish_reason, self.stopped = "stop", True
        return self._say(piece)

    def end(self) -> str:
        """Take note that no more tokens come, and give the text that was held back."""
        assert self.request is not None
        if len(self._tokens) < self.request.room:  # it may have been cancelled
            self.finish_reason = "stop"
        # what was held back is part of the answer unless it completes a stop string after all
        rest = self._stops.push(self._text.flush()) + self._stops.flush()
        if self._stops.matched is not None:
            self.finish_reason = "stop"
        self.complete = True
        return self._say(rest)

    def pieces(self) -> Generator[str, None, None]:
        """Compute the answer, one token at a time."""
        request = self.submit()
        with contextlib.closing(self._engine.tokens(request)) as tokens:
            for token in tokens:
                if piece := self.push(token):
                    yield piece
                if self.stopped:
                    break
        if rest := self.end():
            yield rest

    def cancel(self) -> None:
        """Let the engine compute no more of it."""
        if self.request is not None:
            self._engine.cancel(self.request)

    def answer(self) -> Answer:
        """Sum up what has been said."""
        watch = Stopwatch() if self.request is None else self.request.watch
        return Answer(
            text="".join(self._said),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self._prompt.ids),
            image_tokens=self._prompt.n_image_tokens,
            cached_tokens=0 if self.request is None else self.request.cached,
            completion_tokens=len(self._tokens),
            tokens=tuple(self._tokens),
            seed=self._sampler.seed,
            timings=Timings(
                image_decode=self._image_decode,
                encode=watch.encode,
                prefill=watch.prefill,
                first_token=self._image_decode + watch.first_token,
                decode=watch.decode,
            ),
        )

    def _say(self, piece: str) -> str:
        if piece:
            self._said.append(piece)
        return piece


class Model:
    """A decoder, a vision encoder and a tokenizer that belong together."""

    def __init__(
        self,
        config: ModelConfig,
        engine: Engine,
        tokenizer: Tokenizer,
        folder: Path,
        load_seconds: float,
        max_image_size: int | None = None,
        plan: Plan | None = None,
    ) -> None:
        """Join loaded parts; ``pixedge.load`` is the usual way.

        max_image_size: the greatest cap that a request may set on the longer side of its pictures, in pixels.
        plan: of the memory that was taken.
        """
        self.config = config
        self.engine = engine
        self.tokenizer = tokenizer
        self.folder = folder
        self.load_seconds = load_seconds
        self.plan = plan
        self.max_image_size = max_image_size

    def generate(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        schema: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        max_image_size: int | None = None,
        limits: ImageLimits | None = None,
    ) -> Answer:
        """Answer a conversation; see ``stream`` for the arguments and errors."""
        stream = self.stream(
            messages,
            params,
            schema=schema,
            regex=regex,
            grammar=grammar,
            max_image_size=max_image_size,
            limits=limits,
        )
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        schema: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        max_image_size: int | None = None,
        limits: ImageLimits | None = None,
        shorten: bool = False,
        on_stage: OnStage | None = None,
    ) -> Stream:
        """Answer a conversation piece by piece.

        messages as in OpenAI's chat API, pictures anywhere among a user's text (see pixedge.messages).
        schema, regex, grammar: what the whole answer must match, a JSON schema (a dict or its text), a
        regular expression or a Lark grammar, one of them; the same as params.answer_format.
        max_image_size: cap on the longer side of every picture in pixels. shorten: where the cache has no
        room for max_tokens but for some, the answer may be as long as there is room, and is not refused.
        on_stage: told of each picture and each part of the prompt before it is computed (pixedge.stage). The
        prompt is built before this returns, so a bad picture, message, length or format raises here:
        ImageError, MessageError, CapacityError, UsageError.
        """
        params = params or SamplingParams()
        answer_format = AnswerFormat.choose(schema, regex, grammar)
        if answer_format is not None:
            params = replace(params, answer_format=answer_format)
        caps = [size for size in (self.max_image_size, max_image_size) if size is not None]
        max_image_size = min(caps, default=None)
        start = time.perf_counter()
        prompt = self.tokenizer.encode(messages, max_image_size, limits)
        image_decode = time.perf_counter() - start
        if shorten and 0 < (room := self.engine.cache.tokens - len(prompt.ids) + 1) < params.max_tokens:
            params = replace(params, max_tokens=room)
        self.engine.room(len(prompt.ids), params.max_tokens)  # raises where there is none
        return Stream(self.engine, self.tokenizer, prompt, params, image_decode, on_stage)
