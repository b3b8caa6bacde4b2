"""From a prompt to tokens: encode its pictures, prefill in chunks, then decode one token a step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pixedge.config import ModelConfig
from pixedge.decoder import Decoder
from pixedge.errors import CapacityError
from pixedge.kv_cache import KVCache
from pixedge.sampling import SampledToken, Sampler, SamplingParams
from pixedge.tokenizer import Prompt

PREFILL_CHUNK = 512
"""Tokens a prefill step takes: bounds its activations, long enough to keep a matrix product busy."""


class Vision(Protocol):
    """What turns a picture into embeddings."""

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Map pixels float32 [3, H, W] to embeddings [patches, dim]."""
        ...


@dataclass
class Stopwatch:
    """Seconds spent, by stage, while a request runs."""

    encode: float = 0.0
    prefill: float = 0.0


@dataclass(frozen=True)
class Engine:
    """A decoder and a vision encoder on their devices; holds no state between requests."""

    config: ModelConfig
    decoder: Decoder
    vision: Vision
    device: torch.device
    dtype: torch.dtype
    stop_ids: frozenset[int]
    prefill_chunk: int = PREFILL_CHUNK

    def check_fits(self, prompt_tokens: int) -> None:
        """Raise CapacityError when the prompt leaves no room for an answer."""
        context = self.config.decoder.context
        if prompt_tokens >= context:
            raise CapacityError(
                f"the prompt has {prompt_tokens:,} tokens and the model's context holds {context:,}, one of "
                "them for the answer; ask with fewer or smaller pictures (--max-image-size) or less text"
            )

    def embed(self, prompt: Prompt, watch: Stopwatch) -> Tensor:
        """Return the prompt's embeddings [tokens, dim]: the encoder's for [IMG], rows of the table else."""
        ids = torch.tensor(prompt.ids, device=self.device)
        x: Tensor = self.decoder.embed_tokens(ids).to(self.dtype)
        if prompt.images:
            start = self._now()
            encoded = [self.vision.encode(image).to(self.device, self.dtype) for image in prompt.images]
            watch.encode += self._now() - start
            places = torch.nonzero(ids == self.config.vision.image_token_id)[:, 0]
            patches = torch.cat(encoded)
            assert len(places) == len(patches), f"{len(places)} [IMG] ids, {len(patches)} embeddings"
            x = x.index_copy(0, places, patches)
        return x

    def forward(self, x: Tensor, cache: KVCache) -> Tensor:
        """Run embeddings x [tokens, dim] behind what the cache holds; return hidden states [tokens, dim]."""
        positions = torch.arange(cache.length, cache.length + len(x), device=self.device)
        hidden: Tensor = self.decoder(x, positions, cache)
        cache.advance(len(x))
        return hidden

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, cache: KVCache, watch: Stopwatch) -> Tensor:
        """Run the whole prompt into the cache; return the logits [vocab] after its last token."""
        x = self.embed(prompt, watch)
        start = self._now()
        for chunk in torch.split(x, self.prefill_chunk):
            hidden = self.forward(chunk, cache)
        logits: Tensor = self.decoder.lm_head(hidden[-1:])[0]
        watch.prefill += self._now() - start
        return logits

    @torch.inference_mode()
    def decode(self, token: int, cache: KVCache) -> Tensor:
        """Run one token into the cache; return the logits [vocab] after it."""
        x = self.decoder.embed_tokens(torch.tensor([token], device=self.device)).to(self.dtype)
        logits: Tensor = self.decoder.lm_head(self.forward(x, cache))[0]
        return logits

    @torch.inference_mode()
    def score(self, prompt: Prompt) -> Tensor:
        """Return the log-probability of each of the prompt's tokens but the first, float32 [tokens - 1]."""
        cache = KVCache(self.config.decoder, len(prompt.ids), self.dtype, self.device)
        ids = torch.tensor(prompt.ids, device=self.device)
        scores = []
        for chunk in torch.split(self.embed(prompt, Stopwatch()), self.prefill_chunk):
            start = cache.length
            following = ids[start + 1 : start + 1 + len(chunk)]
            logits = self.decoder.lm_head(self.forward(chunk, cache)[: len(following)]).float()
            scores.append(torch.log_softmax(logits, -1).gather(1, following[:, None])[:, 0])
        return torch.cat(scores).cpu()

    def generate(self, prompt: Prompt, sampler: Sampler, watch: Stopwatch) -> Iterator[SampledToken]:
        """Yield the answer's tokens with the stop id, at most ``max_tokens`` or what the context holds.

        Each token is computed when it is asked for. Raises CapacityError for a prompt without room behind it.
        """
        self.check_fits(len(prompt.ids))
        room = min(sampler.params.max_tokens, self.config.decoder.context - len(prompt.ids))
        # the last token is never fed back, so it needs no place
        cache = KVCache(self.config.decoder, len(prompt.ids) + room - 1, self.dtype, self.device)
        logits = self.prefill(prompt, cache, watch)
        for index in range(room):
            token = sampler.sample(logits)
            yield token
            if token.id in self.stop_ids or index == room - 1:
                return
            logits = self.decode(token.id, cache)

    def _now(self) -> float:
        """Return the time in seconds, once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def greedy(engine: Engine, prompt: Prompt, max_tokens: int) -> list[int]:
    """Return the ids of the most likely answer."""
    sampler = Sampler(SamplingParams(max_tokens=max_tokens), prompt.ids)
    return [token.id for token in engine.generate(prompt, sampler, Stopwatch())]
