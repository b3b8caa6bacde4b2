"""What is timed of an engine on a GPU: steps, answers, prompts and the first token behind a picture."""

import random
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_clock import Bench
from pixedge.config import ModelConfig
from pixedge.engine import Engine
from pixedge.kernels.cuda.choosing import Rule
from pixedge.kernels.cuda.passes import Passes
from pixedge.prediction import decode_step, prefill_chunks
from pixedge.prompt import Prompt
from pixedge.sampling import Sampler, SamplingParams


@dataclass(frozen=True)
class Size:
    """How much is measured.

    contexts: tokens held behind which a step is timed. prompts: tokens. sides: of square pictures, in pixels.
    batches: answers at a time. chunk: tokens of prompts in a step. tokens: of answers through the engine.
    repeats: of each step. words: behind a picture.
    """

    config: ModelConfig
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    sides: tuple[int, ...]
    batches: tuple[int, ...]
    chunk: int
    tokens: int
    repeats: int
    words: int


def random_ids(size: Size, count: int, seed: int) -> list[int]:
    """Draw ids that stand for no picture."""
    return random.Random(seed).choices(range(20, size.config.decoder.vocab_size), k=count)


def picture_prompt(size: Size, side: int, seed: int) -> Prompt:
    """Make a prompt of a few words behind a square picture."""
    eye = size.config.vision
    pixels = np.random.default_rng(seed).standard_normal((3, side, side), dtype=np.float32)
    columns = side // eye.patch_size
    row = [eye.image_token_id] * columns + [eye.image_break_token_id]
    ids = [1, *row * columns]
    ids[-1] = eye.image_end_token_id
    return Prompt((*ids, *random_ids(size, size.words, seed)), (pixels,), columns**2)


def ask(engine: Engine, prompt: Prompt, tokens: int) -> Any:
    """Queue a request for so many tokens."""
    return engine.submit(prompt, Sampler(SamplingParams(max_tokens=tokens)))


def run_all(engine: Engine) -> None:
    """Step until nobody is under way."""
    while engine._active or engine._waiting:
        engine.step()


def time_decode(bench: Bench, size: Size, engine: Engine) -> list[dict[str, Any]]:
    """Time steps of every batch behind every context, on a cache that is full of numbers."""
    config, passes, pool = size.config.decoder, passes_of(engine), engine.cache.pool
    found = []
    for batch in size.batches:
        for context in size.contexts:
            pages = -(-context // 16)
            row: dict[str, Any] = {"batch": batch, "context": context}
            found.append(row)
            if batch * pages > pool.pages:
                row["why"] = f"{batch * context:,} tokens do not fit the cache of {engine.cache.tokens:,}"
                continue
            order = np.random.default_rng(0).permutation(pool.pages)[: batch * pages].astype(np.int32)
            ids, positions = random_ids(size, batch, 1), [context - 1] * batch
            tables, rules = order.reshape(batch, pages), [Rule()] * batch

            def step(ids=ids, positions=positions, tables=tables, rules=rules) -> None:
                passes.step(ids, positions, tables, rules)

            seconds = bench.median(step, size.repeats)
            largest = next(each for each in passes.graph.batches if each >= batch)
            graph = bench.median(lambda largest=largest: passes.graph.replay(largest), size.repeats)
            stage = decode_step(config, batch=batch, context=context, kv_bits=engine.kv_bits)
            row |= {
                "seconds": seconds,
                "graph_seconds": graph,
                "tokens_per_second": batch / seconds,
                "share_of_limit": stage.share(bench.machine, seconds),
                "binding": stage.binding(bench.machine),
            }
    return found


def time_answers(bench: Bench, size: Size, engine: Engine) -> list[dict[str, Any]]:
    """Time answers through the engine, its own work and sampling included."""
    found = []
    for batch in size.batches:
        requests = [
            ask(engine, Prompt(tuple(random_ids(size, size.prompts[0], 100 + seed)), (), 0), size.tokens + 1)
            for seed in range(batch)
        ]
        while not all(request.answered for request in requests):
            engine.step()
        ahead = sum(request.answered for request in requests)
        start = bench.now()
        run_all(engine)
        seconds = bench.now() - start
        tokens = sum(request.answered for request in requests) - ahead
        found.append({"batch": batch, "context": size.prompts[0], "tokens_per_second": tokens / seconds})
    return found


def time_prompts(bench: Bench, size: Size, engine: Engine) -> list[dict[str, Any]]:
    """Time prompts that nothing is known of, up to their first token."""
    found = []
    for length in size.prompts:
        times = []
        for seed in range(1 + min(3, size.repeats)):
            ask(engine, Prompt(tuple(random_ids(size, length, 1000 * length + seed)), (), 0), 1)
            start = bench.now()
            run_all(engine)
            times.append(bench.now() - start)
        seconds = statistics.median(times[1:])
        stages = prefill_chunks(size.config.decoder, length, kv_bits=engine.kv_bits)
        limit = sum(stage.limit(bench.machine) for stage in stages)
        found.append(
            {
                "tokens": length,
                "seconds": seconds,
                "tokens_per_second": length / seconds,
                "share_of_limit": limit / seconds,
            }
        )
    return found


def time_first_token(bench: Bench, size: Size, engine: Engine) -> dict[str, Any]:
    """Time the first token behind the largest picture, by stage."""
    side, watches = size.sides[-1], []
    for seed in range(1 + min(3, size.repeats)):
        request = ask(engine, picture_prompt(size, side, seed), 1)
        run_all(engine)
        if request.error is not None:
            raise request.error
        watches.append(request.watch)
    stages = {
        name: statistics.median(getattr(watch, name) for watch in watches[1:])
        for name in ("encode", "prefill", "first_token")
    }
    return {"side": side, "tokens": len(request.prompt.ids), "seconds": stages}


def passes_of(engine: Engine) -> Passes:
    """Return what runs the engine's decoder."""
    found: Passes = engine.runner.passes  # type: ignore[attr-defined]
    return found
