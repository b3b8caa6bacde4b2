"""What must hold on any weights: however a prompt is cut, fed or shared out, the same tokens follow."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pixedge.engine
from pixedge.decoder import WholeSequences
from pixedge.engine import Engine, Stopwatch, greedy
from pixedge.errors import CapacityError, PixedgeError
from pixedge.kv_cache import KVCache
from pixedge.sampling import Sampler, SamplingParams
from pixedge.tokenizer import Prompt
from tests.random_models import (
    CPU,
    IMG,
    TorchVision,
    build_decoder,
    build_encoder,
    make_prompt,
    quantizable_config,
    quantize_decoder,
    random_engine,
    random_pixels,
    random_tensors,
    random_text,
)

BOUND = 2e-5
ENGINES = {seed: random_engine(seed) for seed in (5, 6, 11)}


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param


def picture(engine: Engine, rows: int = 2, columns: int = 3, seed: int = 0) -> np.ndarray:
    return random_pixels(engine.config.vision, rows, columns, seed)


def mixed_prompt(engine: Engine) -> Prompt:
    """Text, two pictures of different sizes, text."""
    a, b = picture(engine, 2, 3, 1), picture(engine, 3, 1, 2)
    return make_prompt(
        engine.config.vision, [1], random_text(0, 4), a, random_text(1, 3), b, random_text(2, 5)
    )


def new_cache(engine: Engine, capacity: int) -> KVCache:
    return KVCache(engine.config.decoder, capacity, engine.dtype, CPU)


def prompt_logits(engine: Engine, prompt: Prompt) -> Tensor:
    """Prefill and return the logits [vocab] behind the prompt."""
    return engine.prefill(prompt, new_cache(engine, len(prompt.ids)), Stopwatch())


@torch.inference_mode()
def whole_logits(engine: Engine, x: Tensor) -> Tensor:
    """Run embeddings [tokens, dim] at once and without a cache: logits [tokens, vocab]."""
    return engine.decoder.lm_head(engine.decoder(x, torch.arange(len(x)), WholeSequences(len(x))))


def generate(engine: Engine, prompt: Prompt, **params: object) -> list[int]:
    sampler = Sampler(SamplingParams(**params), prompt.ids)
    return [token.id for token in engine.generate(prompt, sampler, Stopwatch())]


# One prompt, fed in different ways


@torch.inference_mode()
def test_prefill_equals_token_by_token_decode(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    x = engine.embed(prompt, Stopwatch())
    whole, single = (new_cache(engine, len(x)) for _ in range(2))
    logits = engine.prefill(prompt, whole, Stopwatch())
    for row in x:
        hidden = engine.forward(row[None], single)
    torch.testing.assert_close(engine.decoder.lm_head(hidden)[0], logits, atol=BOUND, rtol=0)
    torch.testing.assert_close(single.keys, whole.keys, atol=BOUND, rtol=0)
    torch.testing.assert_close(single.values, whole.values, atol=BOUND, rtol=0)


def test_decode_equals_prefill_of_the_longer_text(engine: Engine) -> None:
    prompt, more = mixed_prompt(engine), random_text(7, 6)
    cache = new_cache(engine, len(prompt.ids) + len(more))
    engine.prefill(prompt, cache, Stopwatch())
    for count, token in enumerate(more, 1):
        found = engine.decode(token, cache)
        longer = dataclasses.replace(prompt, ids=(*prompt.ids, *more[:count]))
        torch.testing.assert_close(found, prompt_logits(engine, longer), atol=BOUND, rtol=0)


@given(st.sampled_from(sorted(ENGINES)), st.lists(st.integers(1, 40), max_size=12))
@torch.inference_mode()
def test_any_chunks_equal_the_whole(seed: int, cuts: list[int]) -> None:
    """Chunks of any sizes, also ones that cut through a picture's rows."""
    engine = ENGINES[seed]
    x = engine.embed(mixed_prompt(engine), Stopwatch())
    ends = sorted({min(end, len(x)) for end in itertools.accumulate(cuts)} | {len(x)})
    cache = new_cache(engine, len(x))
    hidden = [engine.forward(x[start:end], cache) for start, end in itertools.pairwise([0, *ends])]
    torch.testing.assert_close(
        engine.decoder.lm_head(torch.cat(hidden)), whole_logits(engine, x), atol=BOUND, rtol=0
    )


@pytest.mark.parametrize("chunk", [1, 2, 7, 31, 32])
def test_prefill_in_chunks_changes_no_token(engine: Engine, chunk: int) -> None:
    prompt = mixed_prompt(engine)
    chunked = dataclasses.replace(engine, prefill_chunk=chunk)
    torch.testing.assert_close(
        prompt_logits(chunked, prompt), prompt_logits(engine, prompt), atol=BOUND, rtol=0
    )
    assert greedy(chunked, prompt, 8) == greedy(engine, prompt, 8)


@torch.inference_mode()
def test_quantised_weights_in_bfloat16_keep_the_invariants() -> None:
    """As the runtime computes on a CPU: its kernels take one row as well as many, each token on its own.

    Logits of size 1 may differ by what bfloat16 rounds, 2^-8, a few times over; float32 is 1,000 times finer.
    """
    config = quantizable_config()
    tensors = random_tensors(config, 4)
    decoder = build_decoder(config, tensors)
    quantize_decoder(decoder, torch.bfloat16)
    vision = TorchVision(build_encoder(config, tensors))
    engine = Engine(config, decoder, vision, CPU, torch.bfloat16, frozenset())
    prompt = mixed_prompt(engine)
    x = engine.embed(prompt, Stopwatch())
    assert x.dtype == torch.bfloat16
    logits = prompt_logits(engine, prompt).float()
    assert logits.std() > 0.5
    for chunk in (1, 7):
        found = prompt_logits(dataclasses.replace(engine, prefill_chunk=chunk), prompt)
        torch.testing.assert_close(found.float(), logits, atol=0.1, rtol=0)
    assert greedy(engine, prompt, 5) == greedy(engine, prompt, 5)


@pytest.mark.parametrize("chunk", [5, 512])
def test_score_is_the_log_probability_of_each_next_token(engine: Engine, chunk: int) -> None:
    prompt = mixed_prompt(engine)
    x = engine.embed(prompt, Stopwatch())
    expected = torch.log_softmax(whole_logits(engine, x), -1)
    expected = expected[torch.arange(len(x) - 1), torch.tensor(prompt.ids[1:])]
    found = dataclasses.replace(engine, prefill_chunk=chunk).score(prompt)
    torch.testing.assert_close(found, expected, atol=BOUND, rtol=0)


# Pictures


def test_each_picture_is_encoded_once_and_alone(engine: Engine) -> None:
    a, b = picture(engine, 2, 3, 1), picture(engine, 3, 1, 2)
    vision, words = engine.config.vision, random_text(0, 4)
    engine.vision.asked.clear()
    both = make_prompt(vision, [1], a, words, b)
    x = engine.embed(both, Stopwatch())
    assert [pixels is given_in for pixels, given_in in zip(engine.vision.asked, (a, b), strict=True)] == [
        True
    ] * 2
    alone_a = engine.embed(make_prompt(vision, [1], a), Stopwatch())
    alone_b = engine.embed(make_prompt(vision, b), Stopwatch())
    assert torch.equal(x[: len(alone_a)], alone_a)
    assert torch.equal(x[-len(alone_b) :], alone_b)


def test_only_the_image_tokens_take_embeddings(engine: Engine) -> None:
    a = picture(engine, 2, 3, 1)
    prompt = make_prompt(engine.config.vision, [1], a, random_text(0, 4))
    x = engine.embed(prompt, Stopwatch())
    ids = torch.tensor(prompt.ids)
    table = engine.decoder.embed_tokens.weight
    assert prompt.n_image_tokens == int((ids == IMG).sum()) == 6
    assert torch.equal(x[ids != IMG], table[ids[ids != IMG]])
    assert torch.equal(x[ids == IMG], engine.vision.encode(a))


def test_the_order_of_pictures_is_kept(engine: Engine) -> None:
    a, b = picture(engine, 2, 3, 1), picture(engine, 2, 3, 2)
    forward, backward = (
        make_prompt(engine.config.vision, [1], first, random_text(0, 2), second, random_text(1, 2))
        for first, second in ((a, b), (b, a))
    )
    assert forward.ids == backward.ids
    x, y = (engine.embed(prompt, Stopwatch()) for prompt in (forward, backward))
    block = len(make_prompt(engine.config.vision, a).ids)
    assert torch.equal(x[1 : 1 + block], y[3 + block : 3 + 2 * block])
    difference = (prompt_logits(engine, forward) - prompt_logits(engine, backward)).abs().max()
    assert difference > 1e-2


@pytest.mark.parametrize("which", [0, 1])
def test_changing_one_pixel_changes_the_logits(engine: Engine, which: int) -> None:
    prompt = mixed_prompt(engine)
    images = [image.copy() for image in prompt.images]
    images[which][2, -1, -1] += 1
    changed = dataclasses.replace(prompt, images=tuple(images))
    difference = (prompt_logits(engine, prompt) - prompt_logits(engine, changed)).abs().max()
    assert difference > 100 * BOUND


def test_a_wrong_number_of_image_tokens_is_never_papered_over(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    short = dataclasses.replace(prompt, images=prompt.images[:1])
    with pytest.raises(AssertionError, match=r"9 \[IMG\] ids, 6 embeddings"):
        engine.embed(short, Stopwatch())


# Answers


def test_greedy_takes_the_most_likely_token_of_a_cold_run(engine: Engine) -> None:
    """Every token again without a cache: the whole text so far, then argmax."""
    prompt = mixed_prompt(engine)
    x = engine.embed(prompt, Stopwatch())
    expected = []
    for _ in range(8):
        expected.append(int(whole_logits(engine, x)[-1].argmax()))
        x = torch.cat([x, engine.decoder.embed_tokens.weight[expected[-1:]]])
    assert greedy(engine, prompt, 8) == expected
    assert generate(engine, prompt, max_tokens=8, temperature=0.0, seed=3) == expected
    assert generate(engine, prompt, max_tokens=8, temperature=1.5, top_k=1, seed=3) == expected


def test_the_same_seed_gives_the_same_text(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    first, again = (generate(engine, prompt, max_tokens=20, temperature=1.0, seed=5) for _ in range(2))
    chunked = dataclasses.replace(engine, prefill_chunk=3)
    assert first == again == generate(chunked, prompt, max_tokens=20, temperature=1.0, seed=5)
    assert first != generate(engine, prompt, max_tokens=20, temperature=1.0, seed=6)


def test_requests_side_by_side_do_not_touch_each_other(engine: Engine) -> None:
    prompts = [mixed_prompt(engine), make_prompt(engine.config.vision, [1], random_text(9, 3))]
    alone = [generate(engine, prompt, max_tokens=6, temperature=1.0, seed=1) for prompt in prompts]
    samplers = [Sampler(SamplingParams(max_tokens=6, temperature=1.0, seed=1), p.ids) for p in prompts]
    streams = [engine.generate(p, s, Stopwatch()) for p, s in zip(prompts, samplers, strict=True)]
    together = [[token.id for token in step] for step in zip(*streams, strict=True)]
    assert [list(ids) for ids in zip(*together, strict=True)] == alone


def test_penalties_see_the_prompt_and_the_answer(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    free = greedy(engine, prompt, 30)
    assert len(set(free)) < 30  # a vocabulary of 48 repeats itself unless it is held back
    held = generate(engine, prompt, max_tokens=30, presence_penalty=2.0, frequency_penalty=2.0)
    assert len(set(held)) > len(set(free))
    banned = generate(engine, prompt, max_tokens=10, repetition_penalty=1e6)
    assert not set(banned) & set(prompt.ids) and len(set(banned)) == 10


def test_generation_ends_at_a_stop_id(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    free = generate(engine, prompt, max_tokens=20, temperature=1.0, seed=2)
    stops = frozenset({free[4], free[9]})
    end = next(at for at, token in enumerate(free) if token in stops)
    stopping = dataclasses.replace(engine, stop_ids=stops)
    assert generate(stopping, prompt, max_tokens=20, temperature=1.0, seed=2) == free[: end + 1]


def test_tokens_are_computed_as_they_are_asked_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    forward = Engine.forward
    monkeypatch.setattr(Engine, "forward", lambda *args: steps.append(len(args[1])) or forward(*args))
    prompt = mixed_prompt(engine)
    tokens = engine.generate(prompt, Sampler(SamplingParams(), prompt.ids), Stopwatch())
    assert steps == []
    next(tokens)
    assert steps == [len(prompt.ids)]
    next(tokens)
    assert steps == [len(prompt.ids), 1]
    tokens.close()
    assert steps == [len(prompt.ids), 1]


# Limits


def caches_made(monkeypatch: pytest.MonkeyPatch) -> list[KVCache]:
    made: list[KVCache] = []

    class Recorded(KVCache):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(pixedge.engine, "KVCache", Recorded)
    return made


@pytest.mark.parametrize("max_tokens", [1, 2, 9])
def test_the_cache_holds_exactly_what_an_answer_can_fill(
    engine: Engine, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last token is chosen but never fed back, so it needs no place."""
    prompt, made = mixed_prompt(engine), caches_made(monkeypatch)
    assert len(greedy(engine, prompt, max_tokens)) == max_tokens
    (cache,) = made
    assert cache.length == cache.capacity == len(prompt.ids) + max_tokens - 1


@pytest.mark.parametrize("room", [1, 2, 5])
def test_an_answer_ends_where_the_context_does(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, made = random_engine(5, context=40), caches_made(monkeypatch)
    prompt = make_prompt(engine.config.vision, random_text(0, 40 - room))
    assert len(greedy(engine, prompt, 1000)) == room
    assert made[0].capacity == 39
    assert len(greedy(engine, prompt, 1)) == 1


@pytest.mark.parametrize("excess", [0, 1, 300])
def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(excess: int) -> None:
    """Refused before a picture is encoded or a cache is allocated; an image's tokens count like others."""
    engine = random_engine(5, context=1040)
    a = picture(engine, 8, 8)  # 64 patches and 8 ends of rows
    prompt = make_prompt(engine.config.vision, a, random_text(0, 968 + excess))
    engine.vision.asked.clear()
    with pytest.raises(
        CapacityError, match=rf"the prompt has {1040 + excess:,} tokens .* context holds 1,040"
    ):
        next(engine.generate(prompt, Sampler(SamplingParams()), Stopwatch()))
    assert engine.vision.asked == []
    fits = make_prompt(engine.config.vision, a, random_text(0, 967))
    assert len(greedy(engine, fits, 5)) == 1


def test_logits_that_are_not_finite_are_an_error_not_a_token(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    images = [image.copy() for image in prompt.images]
    images[0][0, 0, 0] = np.inf
    with pytest.raises(PixedgeError, match="logits are not finite"):
        greedy(engine, dataclasses.replace(prompt, images=tuple(images)), 2)


def test_time_is_taken_by_stage(engine: Engine) -> None:
    watch, prompt = Stopwatch(), mixed_prompt(engine)
    list(engine.generate(prompt, Sampler(SamplingParams(max_tokens=2), prompt.ids), watch))
    assert watch.encode > 0 and watch.prefill > 0
    text = make_prompt(engine.config.vision, [1], random_text(0, 5))
    watch = Stopwatch()
    list(engine.generate(text, Sampler(SamplingParams(max_tokens=2), text.ids), watch))
    assert watch.encode == 0 and watch.prefill > 0
