"""Ways to look into an engine: options exchanged, logits recorded, pages counted."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from pixedge.decoder import WholeSequences
from pixedge.engine import Engine
from pixedge.request import Request
from pixedge.sampling import SampledToken, Sampler, SamplingParams
from pixedge.tokenizer import Prompt


class Forced(Sampler):
    """Says given tokens whatever the logits are, and keeps the logits [tokens, vocab]."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(SamplingParams(max_tokens=len(tokens)))
        self.said = list(tokens)
        self.rows: list[Tensor] = []

    def sample(self, logits: Tensor) -> SampledToken:
        self.rows.append(logits.clone())
        return SampledToken(self.said[len(self.rows) - 1], 0.0)

    @property
    def unconditional(self) -> bool:
        return False

    @property
    def logits(self) -> Tensor:
        return torch.stack(self.rows)


def again(engine: Engine, **options: object) -> Engine:
    """Give the same models with an empty cache, and other options."""
    changed = dataclasses.replace(engine.options, **options)
    parts = (engine.config, engine.decoder, engine.vision, engine.device, engine.dtype, engine.stop_ids)
    return Engine(*parts, changed)


def forced_logits(engine: Engine, prompt: Prompt, answer: Sequence[int] = (14,)) -> Tensor:
    """Give the logits [tokens, vocab] from which each token of an answer would have been chosen."""
    sampler = Forced(answer)
    list(engine.tokens(engine.submit(prompt, sampler)))
    return sampler.logits


def prompt_logits(engine: Engine, prompt: Prompt) -> Tensor:
    """Give the logits [vocab] behind a prompt."""
    return forced_logits(engine, prompt)[0]


def embed(engine: Engine, prompt: Prompt) -> Tensor:
    """Give a prompt's embeddings [tokens, dim]."""
    with torch.inference_mode():
        request = Request(prompt, Forced([0]), 1, engine.config.vision)
        assert engine.runner.look(request, len(prompt.ids), encodings=len(prompt.images))
        return engine.runner.embed(request, len(prompt.ids))


@torch.inference_mode()
def whole_logits(engine: Engine, x: Tensor) -> Tensor:
    """Run embeddings [tokens, dim] at once and without a cache: logits [tokens, vocab]."""
    return engine.decoder.lm_head(engine.decoder(x, torch.arange(len(x)), WholeSequences(len(x))))


def sampled(engine: Engine, prompt: Prompt, **params: object) -> list[int]:
    """Give the ids of an answer."""
    sampler = Sampler(SamplingParams(**params), prompt.ids)
    return [token.id for token in engine.tokens(engine.submit(prompt, sampler))]


def finish_all(engine: Engine) -> None:
    """Step until nobody is under way."""
    while engine._active or engine._waiting:
        engine.step()


def check_books(engine: Engine) -> None:
    """Compare the books of pages with what the requests under way hold, page by page."""
    pages = engine.cache.pages
    used = Counter(int(page) for request in engine._active for page in request.table[: request.pages])
    assert [used[page] for page in range(pages.count)] == pages._users
    assert sorted([*pages._fresh, *pages._idle, *used]) == list(range(pages.count))
    assert {name: page for page, name in pages._name_of.items()} == pages._page_of
    assert set(pages._idle) <= set(pages._name_of)
    assert not set(pages._fresh) & set(pages._name_of)
    assert pages._reserved == sum(request.reserved for request in engine._active)
    assert pages.available >= 0
    for request in engine._active:
        assert request.pages + request.reserved == len(request.table)
    for request in engine._waiting:
        assert request.pages == request.reserved == request.held == 0
    if not engine._active:
        assert pages.available == pages.count
