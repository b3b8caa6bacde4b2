"""What must hold on any weights: however a prompt is cut, fed or shared out, the same tokens follow."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixedge.engine import Engine, EngineOptions, greedy
from pixedge.errors import CapacityError, PixedgeError
from pixedge.request import Stopwatch
from pixedge.runner import Runner
from pixedge.sampling import Sampler, SamplingParams
from pixedge.tokenizer import Prompt
from tests.engines import (
    Forced,
    again,
    check_books,
    embed,
    forced_logits,
    prompt_logits,
    sampled,
    whole_logits,
)
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


# One prompt, fed in different ways


def test_prefill_equals_token_by_token_decode(engine: Engine) -> None:
    """Every token of the prompt as a step of its own, and as if it were part of an answer."""
    prompt = mixed_prompt(engine)
    logits = prompt_logits(again(engine), prompt)
    single = prompt_logits(again(engine, prefill_chunk=1), prompt)
    torch.testing.assert_close(single, logits, atol=BOUND, rtol=0)
    words = random_text(3, 40)
    start = dataclasses.replace(prompt, ids=(*prompt.ids, words[0]))
    decoded = forced_logits(again(engine), start, [*words[1:], 14])
    expected = prompt_logits(again(engine), dataclasses.replace(prompt, ids=(*prompt.ids, *words)))
    torch.testing.assert_close(decoded[-1], expected, atol=BOUND, rtol=0)


def test_decode_equals_prefill_of_the_longer_text(engine: Engine) -> None:
    prompt, more = mixed_prompt(engine), random_text(7, 6)
    found = forced_logits(again(engine), prompt, [*more, 14])
    for count in range(len(more) + 1):
        longer = dataclasses.replace(prompt, ids=(*prompt.ids, *more[:count]))
        torch.testing.assert_close(found[count], prompt_logits(again(engine), longer), atol=BOUND, rtol=0)


@given(st.sampled_from(sorted(ENGINES)), st.integers(1, 70), st.integers(0, 60))
def test_any_chunks_equal_the_whole(seed: int, chunk: int, more: int) -> None:
    """Chunks of any size, also ones that cut through a picture's rows; the reference has no cache at all."""
    engine = ENGINES[seed]
    prompt = mixed_prompt(engine)
    prompt = dataclasses.replace(prompt, ids=(*prompt.ids, *random_text(more, more)))
    found = prompt_logits(again(engine, prefill_chunk=chunk), prompt)
    expected = whole_logits(engine, embed(engine, prompt))[-1]
    torch.testing.assert_close(found, expected, atol=BOUND, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 7, 31, 32])
def test_prefill_in_chunks_changes_no_token(engine: Engine, chunk: int) -> None:
    prompt = mixed_prompt(engine)
    assert greedy(again(engine, prefill_chunk=chunk), prompt, 8) == greedy(engine, prompt, 8)


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
    engine = Engine(config, decoder, vision, CPU, torch.bfloat16, frozenset(), EngineOptions(kv_bits=16))
    prompt = mixed_prompt(engine)
    assert embed(engine, prompt).dtype == torch.bfloat16
    logits = prompt_logits(engine, prompt).float()
    assert logits.std() > 0.5
    for chunk in (1, 7):
        found = prompt_logits(again(engine, prefill_chunk=chunk), prompt)
        torch.testing.assert_close(found.float(), logits, atol=0.1, rtol=0)
    assert greedy(engine, prompt, 5) == greedy(engine, prompt, 5)


@pytest.mark.parametrize("chunk", [5, 512])
def test_score_is_the_log_probability_of_each_next_token(engine: Engine, chunk: int) -> None:
    prompt = mixed_prompt(engine)
    x = embed(engine, prompt)
    expected = torch.log_softmax(whole_logits(engine, x), -1)
    expected = expected[torch.arange(len(x) - 1), torch.tensor(prompt.ids[1:])]
    scoring = again(engine, prefill_chunk=chunk)
    torch.testing.assert_close(scoring.score(prompt), expected, atol=BOUND, rtol=0)
    check_books(scoring)


def test_a_text_too_long_to_score_is_refused_with_both_numbers(engine: Engine) -> None:
    small = again(engine, cache_tokens=32)
    prompt = make_prompt(engine.config.vision, random_text(0, 40))
    with pytest.raises(CapacityError, match=r"the text has 40 tokens and the cache has room for 32 now"):
        small.score(prompt)
    check_books(small)


# Pictures


def test_each_picture_is_encoded_once_and_alone(engine: Engine) -> None:
    a, b = picture(engine, 2, 3, 1), picture(engine, 3, 1, 2)
    vision, words = engine.config.vision, random_text(0, 4)
    engine = again(engine)
    engine.vision.asked.clear()
    both = make_prompt(vision, [1], a, words, b)
    x = embed(engine, both)
    assert [pixels is given_in for pixels, given_in in zip(engine.vision.asked, (a, b), strict=True)] == [
        True
    ] * 2
    alone_a = embed(engine, make_prompt(vision, [1], a))
    alone_b = embed(engine, make_prompt(vision, b))
    assert len(engine.vision.asked) == 2  # seen before
    assert torch.equal(x[: len(alone_a)], alone_a)
    assert torch.equal(x[-len(alone_b) :], alone_b)


def test_only_the_image_tokens_take_embeddings(engine: Engine) -> None:
    a = picture(engine, 2, 3, 1)
    prompt = make_prompt(engine.config.vision, [1], a, random_text(0, 4))
    x = embed(engine, prompt)
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
    x, y = (embed(engine, prompt) for prompt in (forward, backward))
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
        engine.submit(short, Sampler(SamplingParams()))


# Answers


def test_greedy_takes_the_most_likely_token_of_a_cold_run(engine: Engine) -> None:
    """Every token again without a cache: the whole text so far, then argmax."""
    prompt = mixed_prompt(engine)
    x = embed(engine, prompt)
    expected = []
    for _ in range(8):
        expected.append(int(whole_logits(engine, x)[-1].argmax()))
        x = torch.cat([x, engine.decoder.embed_tokens.weight[expected[-1:]]])
    assert greedy(engine, prompt, 8) == expected
    assert sampled(engine, prompt, max_tokens=8, temperature=0.0, seed=3) == expected
    assert sampled(engine, prompt, max_tokens=8, temperature=1.5, top_k=1, seed=3) == expected


def test_the_same_seed_gives_the_same_text(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    first, second = (sampled(engine, prompt, max_tokens=20, temperature=1.0, seed=5) for _ in range(2))
    chunked = again(engine, prefill_chunk=3)
    assert first == second == sampled(chunked, prompt, max_tokens=20, temperature=1.0, seed=5)
    assert first != sampled(engine, prompt, max_tokens=20, temperature=1.0, seed=6)


def test_requests_side_by_side_do_not_touch_each_other(engine: Engine) -> None:
    prompts = [mixed_prompt(engine), make_prompt(engine.config.vision, [1], random_text(9, 3))]
    alone = [sampled(engine, prompt, max_tokens=6, temperature=1.0, seed=1) for prompt in prompts]
    samplers = [Sampler(SamplingParams(max_tokens=6, temperature=1.0, seed=1), p.ids) for p in prompts]
    streams = [engine.tokens(engine.submit(p, s)) for p, s in zip(prompts, samplers, strict=True)]
    together = [[token.id for token in step] for step in zip(*streams, strict=True)]
    assert [list(ids) for ids in zip(*together, strict=True)] == alone


def test_penalties_see_the_prompt_and_the_answer(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    free = greedy(engine, prompt, 30)
    assert len(set(free)) < 30  # a vocabulary of 48 repeats itself unless it is held back
    held = sampled(engine, prompt, max_tokens=30, presence_penalty=2.0, frequency_penalty=2.0)
    assert len(set(held)) > len(set(free))
    banned = sampled(engine, prompt, max_tokens=10, repetition_penalty=1e6)
    assert not set(banned) & set(prompt.ids) and len(set(banned)) == 10


def test_generation_ends_at_a_stop_id(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    free = sampled(engine, prompt, max_tokens=20, temperature=1.0, seed=2)
    stops = frozenset({free[4], free[9]})
    end = next(at for at, token in enumerate(free) if token in stops)
    stopping = again(engine)
    stopping.stop_ids = stops
    assert sampled(stopping, prompt, max_tokens=20, temperature=1.0, seed=2) == free[: end + 1]


def test_tokens_are_computed_as_they_are_asked_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    forward = Runner.forward
    monkeypatch.setattr(
        Runner,
        "forward",
        lambda self, parts: steps.append([count for _, count in parts]) or forward(self, parts),
    )
    prompt, engine = mixed_prompt(engine), again(engine)
    tokens = engine.tokens(engine.submit(prompt, Sampler(SamplingParams(), prompt.ids)))
    assert steps == []
    next(tokens)
    assert steps == [[len(prompt.ids)]]
    next(tokens)
    assert steps == [[len(prompt.ids)], [1]]
    tokens.close()
    assert steps == [[len(prompt.ids)], [1]]
    check_books(engine)


# Limits


@pytest.mark.parametrize("max_tokens", [1, 2, 9])
def test_pages_are_promised_for_exactly_what_an_answer_can_fill(engine: Engine, max_tokens: int) -> None:
    """The last token is chosen but never fed back, so it needs no place: 33 fit two pages."""
    engine = again(engine, cache_tokens=32)
    prompt = make_prompt(engine.config.vision, random_text(0, 33 - max_tokens))
    request = engine.submit(prompt, Forced([14] * max_tokens))
    engine.step()
    assert engine.cache.pages.available == 0 or max_tokens == 1
    assert len(list(engine.tokens(request))) == max_tokens
    check_books(engine)
    with pytest.raises(CapacityError):
        engine.submit(prompt, Forced([14] * (max_tokens + 1)))


@pytest.mark.parametrize("room", [1, 2, 5])
def test_an_answer_ends_where_the_context_does(room: int) -> None:
    engine = random_engine(5, context=40)
    prompt = make_prompt(engine.config.vision, random_text(0, 40 - room))
    request = engine.submit(prompt, Sampler(SamplingParams(max_tokens=1000)))
    assert len(list(engine.tokens(request))) == request.room == room
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
        engine.submit(prompt, Sampler(SamplingParams()))
    assert engine.vision.asked == []
    fits = make_prompt(engine.config.vision, a, random_text(0, 967))
    assert len(greedy(engine, fits, 5)) == 1


def test_logits_that_are_not_finite_are_an_error_not_a_token(engine: Engine) -> None:
    prompt = mixed_prompt(engine)
    images = [image.copy() for image in prompt.images]
    images[0][0, 0, 0] = np.inf
    with pytest.raises(PixedgeError, match="logits are not finite"):
        greedy(engine, dataclasses.replace(prompt, images=tuple(images)), 2)
    check_books(engine)
    assert greedy(engine, prompt, 5) == greedy(again(engine), prompt, 5)


def test_time_is_taken_by_stage(engine: Engine) -> None:
    engine = again(engine)

    def watch(prompt: Prompt) -> Stopwatch:
        request = engine.submit(prompt, Sampler(SamplingParams(max_tokens=3), prompt.ids))
        list(engine.tokens(request))
        return request.watch

    pictures = watch(mixed_prompt(engine))
    assert min(pictures.encode, pictures.prefill, pictures.decode) > 0
    assert pictures.first_token > pictures.encode + pictures.prefill
    text = watch(make_prompt(engine.config.vision, [1], random_text(0, 5)))
    assert text.encode == 0 and min(text.prefill, text.decode) > 0
