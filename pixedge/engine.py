"""Many requests through one decoder: admit, prefill a chunk, decode the batch, sample.

Requests are admitted in the order in which they came, and only when the cache has room for all that they can
become, so none runs out of memory in the middle of an answer. Their prompts go in chunks, first come first
served, and in every step all answers under way get one token. Nothing runs in the background: whoever wants a
token takes the next step, for all requests at once.
"""

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pixedge.config import ModelConfig
from pixedge.decoder import Decoder
from pixedge.errors import CapacityError, PixedgeError
from pixedge.kernels.attention import PAGE
from pixedge.kv_cache import PagePool
from pixedge.memory import plan_cache
from pixedge.out_of_memory import out_of_memory, told
from pixedge.paged_cache import PagedCache
from pixedge.pictures import PictureCache, Vision
from pixedge.prompt import Prompt
from pixedge.request import Request
from pixedge.runner import Outcome, Parts, prepare_runner
from pixedge.sampling import SampledToken, Sampler, SamplingParams
from pixedge.stage import OnStage

if TYPE_CHECKING:
    from pixedge.gpu_decoder import GpuDecoder


@dataclass(frozen=True)
class EngineOptions:
    """What an engine takes of the machine, and how it shares it out.

    kv_bits: 16 stores keys and values in the activations' dtype, 8 in int8; None is 8 where the activations
    have 16 bits. cache_tokens: places for tokens of all requests together; None is what plan_cache allows.
    max_requests: those under way at a time. prefill_chunk: tokens of prompts a step takes, which bounds its
    activations and keeps a matrix product busy. shared_chunk: the same while others wait for a token,
    which comes only when the step is done. picture_bytes: embeddings kept for later questions.
    """

    kv_bits: Literal[8, 16] | None = None
    cache_tokens: int | None = None
    max_requests: int = 16
    prefill_chunk: int = 512
    shared_chunk: int = 64
    picture_bytes: int = 256 << 20


class Engine:
    """A decoder, a vision encoder and a cache on their devices, and the requests under way.

    Any number of threads may submit, read and cancel at the same time.
    """

    def __init__(
        self,
        config: ModelConfig,
        decoder: "Decoder | GpuDecoder",
        vision: Vision,
        device: torch.device,
        dtype: torch.dtype,
        stop_ids: frozenset[int],
        options: EngineOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Join loaded parts and take memory for the cache; dtype is that of the activations.

        progress(done, total) is called while a GPU's kernels are compiled and captured.
        Raises CapacityError when a cache of options.cache_tokens does not fit.
        """
        self.config, self.decoder, self.vision = config, decoder, vision
        self.device, self.dtype, self.stop_ids = device, dtype, stop_ids
        self.options = options or EngineOptions()
        self.kv_bits = self.options.kv_bits or (8 if dtype.itemsize == 2 else 16)
        tokens = plan_cache(
            config.decoder,
            dtype,
            self.kv_bits,
            device,
            self.options.cache_tokens,
        )
        pool = PagePool.allocate(config.decoder, tokens // PAGE, dtype, device, bits=self.kv_bits)
        self._make_runner = prepare_runner(
            decoder,
            pool,
            device,
            dtype,
            chunk=max(self.options.prefill_chunk, self.options.shared_chunk),
            requests=self.options.max_requests,
            progress=progress,
        )
        self._lost = False
        self._start(pool)
        _ENGINES.add(self)

    def _start(self, pool: PagePool) -> None:
        """Begin with nothing asked, nothing known and nobody waiting."""
        self.cache = PagedCache(pool)
        pictures = PictureCache(self.vision, self.device, self.dtype, self.options.picture_bytes)
        self.runner = self._make_runner(self.cache, pictures)
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []  # in the order of their admission
        self._cancelled: deque[Request] = deque()
        self._lock = threading.Lock()  # held during a step
        self._stepped = threading.Condition()

    def _check_process(self) -> None:
        """Refuse a forked process what CUDA does not give it."""
        if self._lost:
            raise PixedgeError(
                "a model on a GPU cannot be used in a process that was forked after it was loaded; load it "
                "in the new process, or start that with multiprocessing's 'spawn'"
            )

    # Requests

    def room(self, prompt_tokens: int, max_tokens: int) -> int:
        """Return the longest answer, in tokens: max_tokens, or less where the model's context ends before.

        Raises CapacityError when there is no room for one token, or when the cache can never hold as much.
        """
        context, cache = self.config.decoder.context, self.cache.tokens
        if prompt_tokens >= context:
            raise CapacityError(
                f"the prompt has {prompt_tokens:,} tokens and the model's context holds {context:,}, one of "
                "them for the answer; ask with fewer or smaller pictures (--max-image-size) or less text"
            )
        room = min(max_tokens, context - prompt_tokens)
        if prompt_tokens + room - 1 > cache:
            raise CapacityError(
                f"the prompt's {prompt_tokens:,} tokens and an answer of up to {room:,} do not fit the cache "
                f"of {cache:,}; ask for a shorter answer (--max-tokens), with fewer or smaller pictures "
                "(--max-image-size) or less text, or load with a larger cache (--context)"
            )
        return room

    def submit(self, prompt: Prompt, sampler: Sampler, on_stage: OnStage | None = None) -> Request:
        """Queue a prompt; its answer comes as the steps go, see ``tokens``.

        Raises what ``room`` raises, and PixedgeError in a process that was forked with a model on a GPU.
        """
        start = time.perf_counter()
        self._check_process()
        room = self.room(len(prompt.ids), sampler.params.max_tokens)
        request = Request(prompt, sampler, room, self.config.vision, on_stage)
        request.watch.first_token = time.perf_counter() - start
        self._waiting.append(request)
        return request

    def tokens(self, request: Request) -> Generator[SampledToken, None, None]:
        """Yield an answer's tokens, the stop id included; steps the engine whenever none is there.

        Raises the error that ended the request. Leaving before the end cancels it.
        """
        try:
            while (token := self._next(request)) is not None:
                yield token
        finally:
            self.cancel(request)

    def cancel(self, request: Request) -> None:
        """End a request and free all it holds, at the latest when the step under way is done.

        Never waits: a finaliser may call it, even in the middle of a step.
        """
        if not request.finished:
            self._cancelled.append(request)
            self._free_cancelled()

    def _next(self, request: Request) -> SampledToken | None:
        """Return a request's next token, None behind its last one; take steps until it is there."""
        while not request.ready:
            if request.finished:
                if request.ready:  # its last token came with the end
                    break
                if request.error is not None:
                    raise request.error
                return None
            with self._alone(wait=False) as alone:
                if alone and not (request.ready or request.finished):
                    self._step()
            if not alone:
                with self._stepped:
                    self._stepped.wait_for(
                        lambda: request.ready or request.finished or not self._lock.locked()
                    )
        return request.ready.popleft()

    # Steps

    def step(self) -> None:
        """Give every request under way its next token, or the next chunk of its prompt."""
        with self._alone():
            self._step()

    @torch.inference_mode()
    def _step(self) -> None:
        start = self.runner.now()
        self._admit()
        chosen = self._sample(self._prefill() + self._decode())
        seconds = self.runner.now() - start
        for request in (*self._active, *self._waiting.copy()):
            request.clock(seconds)
        for request, token in chosen:
            request.append(token)
            if token.id in self.stop_ids or request.answered == request.room:
                self._finish(request)

    def _admit(self) -> None:
        """Admit requests in order, as far as the cache can hold all that they may become."""
        while self._waiting and len(self._active) < self.options.max_requests:
            if not self.cache.admit(self._waiting[0]):
                return
            self._active.append(self._waiting.popleft())

    def _prefill(self) -> list[Outcome]:
        """Run the next chunk of prompts; return what came of those that are complete."""
        shared = any(request.answered for request in self._active)
        budget = self.options.shared_chunk if shared else self.options.prefill_chunk
        parts = []
        for request in [request for request in self._active if request.prefilling]:
            if budget == 0 or not self._prepare(request, budget):
                break
            count = min(budget, len(request.prompt.ids) - request.held)
            parts.append((request, count))
            budget -= count
        return self._run(parts)

    def _decode(self) -> list[Outcome]:
        """Run the last token of every answer under way; return what came of them."""
        return self._run([(request, 1) for request in self._active if request.answered])

    def _sample(self, outcomes: list[Outcome]) -> list[tuple[Request, SampledToken]]:
        """Choose a token from each request's logits, unless that is done; bad logits end their request."""
        chosen = []
        for request, found in outcomes:
            try:
                token = found if isinstance(found, SampledToken) else request.sampler.sample(found)
                chosen.append((request, token))
            except Exception as error:
                self._finish(request, error)
        return chosen

    # What steps are made of

    def _prepare(self, request: Request, budget: int) -> bool:
        """Say whether a request's next chunk can run; encode a picture, one a step, where it cannot yet."""
        self.cache.reuse(request)  # others may have computed more of it since it was admitted
        try:
            encoded = request.watch.encode
            ready = self.runner.look(request, request.held + budget, encodings=1)
            return ready and request.watch.encode == encoded  # a picture encoded is enough for one step
        except Exception as error:
            self._finish(request, error)
            return False

    def _run(self, parts: Parts) -> list[Outcome]:
        """Run some tokens of each request; an error ends these requests, and no others."""
        if not parts:
            return []
        try:
            return self.runner.outcomes(parts)
        except Exception as error:
            for request, _ in parts:
                self._finish(request, error)
            return []

    def _finish(self, request: Request, error: Exception | None = None) -> None:
        """End a request, with its error if it has one, and take back what it holds."""
        if request.finished:
            return
        queue = self._active if request in self._active else self._waiting
        queue.remove(request)
        self.cache.release(request, disown=error is not None)
        request.embeddings.clear()
        request.error = error and (out_of_memory(error) or error)
        request.finished = True

    @contextlib.contextmanager
    def _alone(self, wait: bool = True) -> Iterator[bool]:
        """Keep all other threads from stepping; without ``wait``, yield False where another one is at it."""
        taken = self._lock.acquire(blocking=wait)
        try:
            yield taken
        finally:
            if taken:
                self._lock.release()
                self._free_cancelled()

    def _free_cancelled(self) -> None:
        """Free what was cancelled, unless another thread steps, which comes here next; wake who waits."""
        while self._cancelled and self._lock.acquire(blocking=False):
            try:
                while self._cancelled:
                    self._finish(self._cancelled.popleft())
            finally:
                self._lock.release()
        with self._stepped:
            self._stepped.notify_all()

    # Without an answer

    @told()
    @torch.inference_mode()
    def score(self, prompt: Prompt) -> Tensor:
        """Return the log-probability of each of the prompt's tokens but the first, float32 [tokens - 1].

        Raises CapacityError when the cache has no room for the prompt now.
        """
        self._check_process()
        request = Request(prompt, Sampler(SamplingParams(max_tokens=1)), 1, self.config.vision)
        with self._alone():
            if not self.cache.pages.reserve(len(request.table)):
                free = self.cache.pages.available * PAGE
                raise CapacityError(
                    f"the text has {len(prompt.ids):,} tokens and the cache has room for {free:,} now; "
                    "wait for other requests to end, or load with a larger cache (--context)"
                )
            request.reserved = len(request.table)
            try:
                scores = self.runner.scores(request, self.options.prefill_chunk)
            finally:
                self.cache.release(request)
        return scores


def greedy(engine: Engine, prompt: Prompt, max_tokens: int) -> list[int]:
    """Return the ids of the most likely answer."""
    sampler = Sampler(SamplingParams(max_tokens=max_tokens), prompt.ids)
    return [token.id for token in engine.tokens(engine.submit(prompt, sampler))]


_ENGINES: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _after_fork() -> None:
    """Begin anew in a child process: answers under way, and locks of other threads, are its parent's."""
    for engine in list(_ENGINES):
        for request in (*engine._active, *engine._waiting):
            request.error = PixedgeError("this answer was begun before the process forked; ask again")
            request.finished = True
        places = (engine.device, getattr(engine.vision, "device", engine.device))
        if any(place.type == "cuda" for place in places):
            engine._lost = True  # the memory on the device is the parent's
            continue
        engine._start(engine.cache.pool)
    # OpenMP's threads stay behind in the parent, and a child that waits for them waits for ever.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
