"""Tokens of several requests through the GPU's kernels: answers by graphs, prompts by chunks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixedge.gpu_decoder import GpuDecoder
from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.choosing import Rule
from pixedge.kernels.cuda.layout import PAGE
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.kernels.cuda.passes import Chosen, Passes
from pixedge.kv_cache import PagePool
from pixedge.paged_cache import PagedCache
from pixedge.pictures import PictureCache
from pixedge.request import Request
from pixedge.runner import Outcome, Parts, Runner, ends
from pixedge.sampling import SampledToken


class GpuRunner(Runner):
    """A runner whose decoder is a set of passes; tokens are chosen on the device where that is possible."""

    def __init__(
        self,
        passes: Passes,
        device: torch.device,
        dtype: torch.dtype,
        cache: PagedCache,
        pictures: PictureCache,
    ) -> None:
        """Join the parts; the passes work on the cache's pages."""
        self.passes = passes
        self.device, self.dtype = device, dtype
        self.cache = cache
        self.pictures = pictures

    def outcomes(self, parts: Parts) -> list[Outcome]:
        """Do what ``Runner.outcomes`` does; any thread may ask."""
        with tuning.on(self.device):
            return super().outcomes(parts)

    def scores(self, request: Request, chunk: int) -> Tensor:
        """Do what ``Runner.scores`` does; any thread may ask."""
        with tuning.on(self.device):
            return super().scores(request, chunk)

    def _run(self, parts: Parts) -> list[Outcome]:
        if all(not request.prefilling for request, _ in parts):
            return self._answer(parts)
        hidden = self.forward(parts)
        complete, found = ends(parts), []
        for start in range(0, len(complete), self.passes.largest):
            some = complete[start : start + self.passes.largest]
            requests = [request for request, _ in some]
            rules = _rules(requests)
            found += self._outcomes(requests, self.passes.head(hidden, [end for _, end in some], rules))
        return found

    def _answer(self, parts: Parts) -> list[Outcome]:
        """Run the last token of each request, as many at a time as a graph takes."""
        found, passes = [], self.passes
        for start in range(0, len(parts), passes.largest):
            requests = [request for request, _ in parts[start : start + passes.largest]]
            tables = self.cache.take([(request, 1) for request in requests])
            ids = [request.ids[-1] for request in requests]
            held = [request.held for request in requests]
            found += self._outcomes(requests, passes.step(ids, held, tables, _rules(requests)))
        return found

    def _outcomes(self, requests: Sequence[Request], chosen: Chosen | None) -> list[Outcome]:
        """Take what was chosen on the device; fetch the logits of the others, and those that are broken."""
        found: list[Outcome] = []
        for row, request in enumerate(requests):
            if chosen is not None and request.sampler.unconditional and chosen[0][row] >= 0:
                found.append((request, SampledToken(int(chosen[0][row]), chosen[1][row])))
            else:
                found.append((request, self.passes.logits(row)))
        return found

    def forward(self, parts: Parts) -> Tensor:
        """Run the parts into the cache, not counted as held yet; return hidden states [tokens, dim]."""
        tables = self.cache.take(parts)
        spans = [(request.held, count) for request, count in parts]
        ids = [
            token for request, count in parts for token in request.ids[request.held : request.held + count]
        ]
        x = self.passes.embed(ids, tables, spans)
        pieces = torch.split(x, [count for _, count in parts])
        for (request, count), rows in zip(parts, pieces, strict=True):
            self.put_pictures(rows, request, count)
        return self.passes.run()

    def _log_probabilities(self, hidden: Tensor, following: Sequence[int]) -> Tensor:
        return torch.tensor(self.passes.log_probabilities(hidden, following))


def prepare(
    decoder: GpuDecoder,
    pool: PagePool,
    device: torch.device,
    dtype: torch.dtype,
    *,
    chunk: int,
    requests: int,
    progress: Callable[[int, int], None] | None = None,
) -> Callable[[PagedCache, PictureCache], Runner]:
    """Take all memory, compile and capture; see ``runner.prepare_runner``."""
    layers = range(decoder.config.n_layers)
    pages = [
        LayerPages(keys, values, key_scales, value_scales)
        for (keys, key_scales), (values, value_scales) in map(pool.layer, layers)
    ]
    with tuning.on(device):
        passes = Passes(
            decoder.weights,
            decoder.table,
            pages,
            chunk=chunk,
            requests=requests,
            max_pages=min(pool.pages, -(-decoder.config.context // PAGE)),
            capture=decoder.capture,
            progress=progress,
        )
    return lambda cache, pictures: GpuRunner(passes, device, dtype, cache, pictures)


def _rules(requests: Sequence[Request]) -> list[Rule] | None:
    """Say how the device is to choose; None where it cannot choose for any of the requests."""
    if not any(request.sampler.unconditional for request in requests):
        return None
    return [_rule(request) for request in requests]


def _rule(request: Request) -> Rule:
    """Say how one token is chosen; where the device cannot, what it chooses is not used."""
    params = request.sampler.params
    if params.greedy or not request.sampler.unconditional:
        return Rule()
    return Rule(
        params.temperature, params.top_k, params.top_p, params.min_p, uniform=request.sampler.uniform()
    )
