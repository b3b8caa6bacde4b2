"""A loaded model: conversations in, text out.

>>> import pixedge                                                     # doctest: +SKIP
>>> model = pixedge.load("models/demo-pixedge-4bit")                   # doctest: +SKIP
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixedge.config import ModelConfig
from pixedge.engine import Engine, Stopwatch
from pixedge.image import ImageLimits
from pixedge.messages import Messages
from pixedge.sampling import SampledToken, Sampler, SamplingParams, StopStrings
from pixedge.tokenizer import Prompt, TextStream, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Timings:
    """Seconds by stage of one answer.

    image_decode: reading and resizing the pictures and building the token ids. encode: the vision encoder.
    prefill: the prompt through the decoder. first_token: all of these and the choice of the first token.
    decode: from the first token to the last. The time that a reader takes between two pieces is not counted.
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
    max_tokens or the context did. image_tokens counts the [IMG] tokens among prompt_tokens. tokens are those
    that the model chose, with the id that ended the answer and with what a stop string cut from the text.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
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

    Tokens are computed as pieces are asked for. A stream that is dropped or closed early frees its cache.
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
        self._draft = _Draft(engine, tokenizer, prompt, params, image_decode)
        self._pieces = self._draft.pieces()

    def __iter__(self) -> Iterator[str]:
        """Give the pieces of text."""
        return self._pieces

    def close(self) -> None:
        """End the answer here; ``answer`` holds what was said so far."""
        self._pieces.close()
        if not self._draft.complete:
            self._draft.finish_reason, self._draft.complete = "stop", True

    @property
    def answer(self) -> Answer:
        """The complete answer, once the pieces are exhausted or the stream is closed."""
        assert self._draft.complete, "read the stream to its end first, or close it"
        return self._draft.answer()


class _Draft:
    """What a stream knows about its answer; apart from it, so that a dropped stream is no reference cycle."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt: Prompt,
        params: SamplingParams,
        image_decode: float,
    ) -> None:
        self.finish_reason: FinishReason = "length"
        self.complete = False
        self._engine = engine
        self._prompt = prompt
        self._sampler = Sampler(params, prompt.ids)
        self._text = TextStream(tokenizer)
        self._stops = StopStrings(params.stop)
        self._tokens: list[SampledToken] = []
        self._said: list[str] = []
        self._watch = Stopwatch()
        self._image_decode = image_decode
        self._first_token = 0.0
        self._decode = 0.0

    def pieces(self) -> Generator[str, None, None]:
        """Compute the answer, one token at a time."""
        for token in self._clocked(self._engine.generate(self._prompt, self._sampler, self._watch)):
            self._tokens.append(token)
            yield from self._say(self._stops.push(self._text.push(token.id)))
            if token.id in self._engine.stop_ids or self._stops.matched is not None:
                self.finish_reason = "stop"
                break
        # what was held back is part of the answer unless it completes a stop string after all
        rest = self._stops.push(self._text.flush()) + self._stops.flush()
        if self._stops.matched is not None:
            self.finish_reason = "stop"
        yield from self._say(rest)
        self.complete = True

    def answer(self) -> Answer:
        """Sum up what has been said."""
        return Answer(
            text="".join(self._said),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self._prompt.ids),
            image_tokens=self._prompt.n_image_tokens,
            completion_tokens=len(self._tokens),
            tokens=tuple(self._tokens),
            seed=self._sampler.seed,
            timings=Timings(
                image_decode=self._image_decode,
                encode=self._watch.encode,
                prefill=self._watch.prefill,
                first_token=self._image_decode + self._first_token,
                decode=self._decode,
            ),
        )

    def _clocked(self, tokens: Iterator[SampledToken]) -> Iterator[SampledToken]:
        """Pass tokens on and time how long each takes to come, not how long the reader takes to ask."""
        while True:
            start = time.perf_counter()
            token = next(tokens, None)
            seconds = time.perf_counter() - start
            if token is None:
                return
            if self._tokens:
                self._decode += seconds
            else:
                self._first_token = seconds
            yield token

    def _say(self, piece: str) -> Iterator[str]:
        if piece:
            self._said.append(piece)
            yield piece


class Model:
    """A decoder, a vision encoder and a tokenizer that belong together."""

    def __init__(
        self, config: ModelConfig, engine: Engine, tokenizer: Tokenizer, folder: Path, load_seconds: float
    ) -> None:
        """Join loaded parts; ``pixedge.load`` is the usual way."""
        self.config = config
        self.engine = engine
        self.tokenizer = tokenizer
        self.folder = folder
        self.load_seconds = load_seconds

    def generate(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        max_image_size: int | None = None,
        limits: ImageLimits | None = None,
    ) -> Answer:
        """Answer a conversation; see ``stream`` for the arguments and errors."""
        stream = self.stream(messages, params, max_image_size=max_image_size, limits=limits)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        max_image_size: int | None = None,
        limits: ImageLimits | None = None,
    ) -> Stream:
        """Answer a conversation piece by piece.

        messages as in OpenAI's chat API, pictures anywhere among a user's text (see pixedge.messages).
        max_image_size: cap on the longer side of every picture in pixels. The prompt is built before this
        returns, so a bad picture, message or length raises here: ImageError, MessageError, CapacityError.
        """
        params = params or SamplingParams()
        start = time.perf_counter()
        prompt = self.tokenizer.encode(messages, max_image_size, limits)
        image_decode = time.perf_counter() - start
        self.engine.check_fits(len(prompt.ids))
        return Stream(self.engine, self.tokenizer, prompt, params, image_decode)
