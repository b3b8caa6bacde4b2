"""Tokens of several requests through the decoder, and pictures through the encoder, into the shared cache."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pixedge.decoder import Decoder
from pixedge.paged_cache import PagedCache
from pixedge.pictures import PictureCache, Vision
from pixedge.request import Request

Parts = Sequence[tuple[Request, int]]
"""Requests, and how many of its next tokens each one has in a step."""


class Runner:
    """The models on their devices, the cache that they fill, and the pictures seen lately."""

    def __init__(
        self,
        decoder: Decoder,
        vision: Vision,
        device: torch.device,
        dtype: torch.dtype,
        cache: PagedCache,
        picture_bytes: int,
    ) -> None:
        """Join the parts; dtype is that of the activations, picture_bytes bounds the embeddings kept."""
        self.decoder = decoder
        self.device, self.dtype = device, dtype
        self.cache = cache
        self.pictures = PictureCache(vision, device, dtype, picture_bytes)

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
                start = self.now()
                found = self.pictures.encode(picture)
                request.watch.encode += self.now() - start
            request.embeddings[picture.hash] = found
        return True

    def logits(self, parts: Parts) -> list[tuple[Request, Tensor]]:
        """Run the parts; return the logits float32 [vocab], on the CPU, behind each text that is complete."""
        start = self.now()
        hidden = self.forward(parts)
        ends = np.cumsum([count for _, count in parts]) - 1
        complete = [
            (request, end)
            for (request, count), end in zip(parts, ends.tolist(), strict=True)
            if request.held + count == len(request.ids)
        ]
        rows: Tensor | tuple[()] = ()
        if complete:
            wanted = torch.tensor([end for _, end in complete], device=self.device)
            rows = _widen(self.decoder.lm_head(hidden[wanted]).cpu())
        seconds = self.now() - start
        for request, count in parts:
            if request.prefilling:
                request.watch.prefill += seconds
            self.cache.keep(request, count)
            request.drop_embeddings()
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
        for picture in request.pictures_within(end):
            first, last = np.searchsorted(picture.places, (start, end))
            places = torch.from_numpy(picture.places[first:last] - start).to(self.device)
            x = x.index_copy(0, places, request.embeddings[picture.hash][first:last])
        return x

    def scores(self, request: Request, chunk: int) -> Tensor:
        """Return the log-probability of each of a prompt's tokens but the first, float32 [tokens - 1].

        The request's pages are promised to it; its tokens go ``chunk`` at a time, and none is taken from or
        left in the known pages.
        """
        ids = torch.tensor(request.ids, device=self.device)
        scores = []
        while request.prefilling:
            start = request.held
            count = min(chunk, len(ids) - start)
            self.look(request, start + count, encodings=len(request.pictures))
            hidden = self.forward([(request, count)])
            following = ids[start + 1 : start + 1 + count]
            logits = self.decoder.lm_head(hidden[: len(following)]).float()
            scores.append(torch.log_softmax(logits, -1).gather(1, following[:, None])[:, 0])
            request.held += count
            request.drop_embeddings()
        return torch.cat(scores).cpu()

    def now(self) -> float:
        """Return the time in seconds, once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _widen(logits: Tensor) -> Tensor:
    """Turn logits on the CPU into float32, in this thread alone (``Sampler.sample`` says why)."""
    if logits.dtype != torch.bfloat16:
        return logits.float()
    return torch.from_numpy(logits.view(torch.int16).numpy().astype(np.int32) << 16).view(torch.float32)
