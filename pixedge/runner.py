"""Tokens of several requests through the decoder, and pictures through the encoder, into the shared cache."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pixedge.decoder import Decoder
from pixedge.kv_cache import PagePool
from pixedge.paged_cache import PagedCache
from pixedge.pictures import PictureCache
from pixedge.request import Request
from pixedge.sampling import SampledToken

if TYPE_CHECKING:
    from pixedge.gpu_decoder import GpuDecoder

Parts = Sequence[tuple[Request, int]]
"""Requests, and how many of its next tokens each one has in a step."""


Outcome = tuple[Request, Tensor | SampledToken]
"""A request whose text is complete: the logits float32 [vocab] behind it, on the CPU, or its next token."""


class Runner:
    """The models on their devices, the cache that they fill, and the pictures seen lately."""

    def __init__(
        self,
        decoder: Decoder,
        device: torch.device,
        dtype: torch.dtype,
        cache: PagedCache,
        pictures: PictureCache,
    ) -> None:
        """Join the parts; dtype is that of the activations."""
        self.decoder = decoder
        self.device, self.dtype = device, dtype
        self.cache = cache
        self.pictures = pictures

    def look(self, request: Request, end: int, *, encodings: int) -> bool:
        """Fetch the pictures that tokens up to ``end`` need, encoding at most so many; whether all are there.

        Raises what the encoder raises.
        """
        for picture in request.pictures_within(end):
            if picture.hash in request.embeddings:
                continue
            found = self.pictures.get(picture)
            if found is None:
                if encodings == 0:
                    return False
                encodings -= 1
                request.begin_picture(picture)
                start = self.now()
                found = self.pictures.encode(picture)
                request.watch.encode += self.now() - start
            request.embeddings[picture.hash] = found
        return True

    def outcomes(self, parts: Parts) -> list[Outcome]:
        """Run the parts; return what came of each request whose text is complete."""
        for request, _ in parts:
            request.begin_chunk()
        start = self.now()
        found = self._run(parts)
        seconds = self.now() - start
        for request, count in parts:
            if request.prefilling:
                request.watch.prefill += seconds
            self.cache.keep(request, count)
            request.drop_embeddings()
        return found

    def _run(self, parts: Parts) -> list[Outcome]:
        hidden = self.forward(parts)
        complete = ends(parts)
        if not complete:
            return []
        wanted = torch.tensor([end for _, end in complete], device=self.device)
        rows = _widen(self.decoder.lm_head(hidden[wanted]).cpu())
        return [(request, row) for (request, _), row in zip(complete, rows, strict=True)]

    def forward(self, parts: Parts) -> Tensor:
        """Run the parts into the cache, not counted as held yet; return hidden states [tokens, dim]."""
        x = torch.cat([self.embed(request, count) for request, count in parts])
        positions = torch.cat([torch.arange(request.held, request.held + count) for request, count in parts])
        hidden: Tensor = self.decoder(x, positions.to(self.device), self.cache.lay_out(parts))
        return hidden

    def embed(self, request: Request, count: int) -> Tensor:
        """Return embeddings [count, dim] of a request's next tokens: the table's rows, pictures for [IMG]."""
        start, end = request.held, request.held + count
        ids = torch.tensor(request.ids[start:end], device=self.device)
        x: Tensor = self.decoder.embed_tokens(ids).to(self.dtype)
        self.put_pictures(x, request, count)
        return x

    def put_pictures(self, x: Tensor, request: Request, count: int) -> None:
        """Overwrite rows of x [count, dim], a request's next tokens, with its pictures' embeddings."""
        start, end = request.held, request.held + count
        for picture in request.pictures_within(end):
            first, last = np.searchsorted(picture.places, (start, end))
            places = torch.from_numpy(picture.places[first:last] - start).to(self.device)
            x.index_copy_(0, places, request.embeddings[picture.hash][first:last])

    def scores(self, request: Request, chunk: int) -> Tensor:
        """Return the log-probability of each of a prompt's tokens but the first, float32 [tokens - 1].

        The request's pages are promised to it; its tokens go ``chunk`` at a time, and none is taken from or
        left in the known pages.
        """
        scores = []
        while request.prefilling:
            start = request.held
            count = min(chunk, len(request.ids) - start)
            self.look(request, start + count, encodings=len(request.pictures))
            hidden = self.forward([(request, count)])
            following = request.ids[start + 1 : start + 1 + count]
            scores.append(self._log_probabilities(hidden[: len(following)], following))
            request.held += count
            request.drop_embeddings()
        return torch.cat(scores)

    def _log_probabilities(self, hidden: Tensor, following: Sequence[int]) -> Tensor:
        """Return the log-probabilities of the tokens behind hidden states [tokens, dim], on the CPU."""
        logits = self.decoder.lm_head(hidden).float()
        ids = torch.tensor(following, dtype=torch.int64, device=self.device)
        return torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0].cpu()

    def now(self) -> float:
        """Return the time in seconds, once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def ends(parts: Parts) -> list[tuple[Request, int]]:
    """Return the requests whose text is complete, and where its last token is in a step."""
    last = np.cumsum([count for _, count in parts]) - 1
    return [
        (request, end)
        for (request, count), end in zip(parts, last.tolist(), strict=True)
        if request.held + count == len(request.ids)
    ]


def prepare_runner(
    decoder: "Decoder | GpuDecoder",
    pool: PagePool,
    device: torch.device,
    dtype: torch.dtype,
    *,
    chunk: int,
    requests: int,
    progress: Callable[[int, int], None] | None = None,
) -> Callable[[PagedCache, PictureCache], Runner]:
    """Take what running a decoder over a pool needs, once; return what makes a runner of it.

    chunk: the most tokens of prompts in a step. requests: the most sequences in a step.
    """
    if isinstance(decoder, Decoder):
        return lambda cache, pictures: Runner(decoder, device, dtype, cache, pictures)
    from pixedge.gpu_runner import prepare

    return prepare(decoder, pool, device, dtype, chunk=chunk, requests=requests, progress=progress)


def _widen(logits: Tensor) -> Tensor:
    """Turn logits on the CPU into float32, in this thread alone (``Sampler.sample`` says why)."""
    if logits.dtype != torch.bfloat16:
        return logits.float()
    return torch.from_numpy(logits.view(torch.int16).numpy().astype(np.int32) << 16).view(torch.float32)
