"""Runs through a loaded model's own engine that can be timed: prompts, answers, pictures, whole questions.

There is no loop of the profiler's own: requests are submitted and stepped as those of any caller. Texts are
drawn anew where nothing may be known of them, so that no run finds what an earlier one left in the cache.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from pixedge.decoder import Decoder
from pixedge.engine import Engine
from pixedge.kernels.attention import PAGE
from pixedge.model import Model
from pixedge.prompt import Prompt
from pixedge.request import Request
from pixedge.sampling import Sampler, SamplingParams


class Trials:
    """A model and a source of texts."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        """Draw texts from ``seed`` on."""
        self.model = model
        self.engine = model.engine
        self._random = random.Random(seed)
        special = model.tokenizer.special_ids
        self._ordinary = [id for id in range(model.tokenizer.vocab_size) if id not in special]

    @property
    def room(self) -> int:
        """Tokens of prompt and answer that one request may have."""
        return min(self.model.config.decoder.context, self.engine.cache.tokens)

    def text(self, tokens: int) -> Prompt:
        """Draw a prompt of as many ordinary tokens."""
        return Prompt(tuple(self._random.choices(self._ordinary, k=tokens)), (), 0)

    def changed(self, prompt: Prompt) -> Prompt:
        """Give a prompt whose pictures nobody has seen: one value of each is another by a hair."""
        images = []
        for image in prompt.images:
            image = image.copy()
            image.flat[0] += np.float32(self._random.uniform(0.001, 0.01))
            images.append(image)
        return Prompt(prompt.ids, tuple(images), prompt.n_image_tokens)

    def prefill(self, tokens: int) -> float:
        """Return the seconds from a prompt of as many new tokens to the first token of its answer."""
        prompt = self.text(tokens)
        start = self.engine.runner.now()
        request = self.submit(prompt, 1)
        self._until_answered([request])
        assert request.cached < PAGE
        return self.engine.runner.now() - start

    def decode(self, prompts: Sequence[Prompt], tokens: int) -> float:
        """Return the seconds of ``tokens`` steps of an answer to each of the prompts, all at a time.

        The prompts are computed before; those that were used before are known and cost next to nothing.
        """
        # While others are under way a prompt goes in small chunks, during which those that are through with
        # theirs get further tokens: room for these too.
        slack = self._slack(max(len(prompt.ids) for prompt in prompts), len(prompts))
        with endless(self.engine):
            requests = [self.submit(prompt, tokens + 1 + slack) for prompt in prompts]
            try:
                self._until_answered(requests)
                start = self.engine.runner.now()
                for _ in range(tokens):
                    self.engine.step()
                seconds = self.engine.runner.now() - start
                assert not any(request.finished for request in requests)
            finally:
                for request in requests:
                    self.engine.cancel(request)
        return seconds

    def texts(self, depth: int, batch: int) -> list[Prompt]:
        """Draw prompts for ``decode``; behind no tokens an answer begins from a single one."""
        return [self.text(max(1, depth)) for _ in range(batch)]

    def _slack(self, depth: int, batch: int) -> int:
        """Tokens that the first of ``batch`` answers may get before the last one begins."""
        return 1 + (batch - 1) * (max(1, depth) // self.engine.options.shared_chunk + 2)

    def fits(self, depth: int, batch: int, tokens: int) -> bool:
        """Whether ``decode`` has room."""
        each = max(1, depth) + tokens + 1 + self._slack(depth, batch)
        pages = -(-each // PAGE) * batch
        return (
            each <= self.room
            and pages * PAGE <= self.engine.cache.tokens
            and batch <= self.engine.options.max_requests
        )

    def rest(self, batch: int) -> float:
        """Return the seconds of what a step does behind the layers: the head, and the choice of tokens.

        It does not grow with the layers, so a step's time at another number of them follows from it.
        """
        engine = self.engine
        shape = (batch, engine.config.decoder.dim)
        hidden = torch.ones(shape, dtype=engine.dtype, device=engine.device)
        with torch.inference_mode():
            start = engine.runner.now()
            if isinstance(engine.decoder, Decoder):
                for row in engine.decoder.lm_head(hidden).float().cpu():
                    Sampler(SamplingParams()).sample(row)
            else:
                from pixedge.profile.random_gpu_decoder import choose_on_gpu

                choose_on_gpu(engine.runner, hidden)
            return engine.runner.now() - start

    def encode(self, pixels: np.ndarray) -> float:
        """Return the seconds in which the encoder turns pixels float32 [3, H, W] into embeddings."""
        start = self.engine.runner.now()
        self.engine.vision.encode(pixels)
        return self.engine.runner.now() - start

    def submit(self, prompt: Prompt, max_tokens: int) -> Request:
        """Ask for an answer of at most so many tokens, the likeliest each time."""
        params = SamplingParams(max_tokens=max_tokens)
        return self.engine.submit(prompt, Sampler(params, prompt.ids))

    def _until_answered(self, requests: Sequence[Request]) -> None:
        """Step until every answer has begun; an error that ended one is raised."""
        while not all(request.answered for request in requests):
            self.engine.step()
            for request in requests:
                if request.error is not None:
                    raise request.error


@contextmanager
def endless(engine: Engine) -> Iterator[None]:
    """Let no token end an answer: random weights, or a random text, end theirs anywhere."""
    stop_ids, engine.stop_ids = engine.stop_ids, frozenset()
    try:
        yield
    finally:
        engine.stop_ids = stop_ids
