"""Requests side by side: each says what it says alone, none starves, and every page comes back."""

import contextlib
import gc
import random
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixedge.engine import Engine
from pixedge.errors import CapacityError, PixedgeError
from pixedge.runner import Runner
from pixedge.sampling import Sampler, SamplingParams
from pixedge.tokenizer import Prompt
from tests.engines import Forced, again, check_books, finish_all, forced_logits, sampled
from tests.random_models import make_prompt, random_engine, random_pixels, random_text

pytestmark = pytest.mark.usefixtures("one_thread")

BOUND = 2e-5
ENGINE = random_engine(6)


def text(seed: int, tokens: int) -> Prompt:
    return make_prompt(ENGINE.config.vision, random_text(seed, tokens))


def any_prompt(seed: int) -> Prompt:
    """Draw a prompt of up to 120 tokens; few different beginnings, pictures in some."""
    rng = random.Random(seed)
    vision = ENGINE.config.vision
    parts: list = [random_text(rng.randint(0, 2), rng.randint(1, 40))]
    for _ in range(rng.randint(0, 2)):
        parts += [
            random_pixels(vision, 2, rng.randint(1, 5), rng.randint(0, 3)),
            random_text(5, rng.randint(1, 9)),
        ]
    return make_prompt(vision, *parts)


def steps_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record how many tokens of each request every pass through the decoder takes."""
    steps: list[list[int]] = []
    forward = Runner.forward

    def recorded(self: Runner, parts: list) -> torch.Tensor:
        if self is engine.runner:
            steps.append([count for _, count in parts])
        return forward(self, parts)

    monkeypatch.setattr(Runner, "forward", recorded)
    return steps


# Batches


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=8),
    st.integers(1, 5),
    st.sampled_from([3, 16, 64]),
    st.sampled_from([256, 512]),
)
def test_a_batch_says_what_each_says_alone(
    asked: list[tuple[int, int, int]], requests: int, chunk: int, cache: int
) -> None:
    """Any prompts, coming at any time, in any chunks, with a cache that holds all of them or one by one."""
    engine = again(
        ENGINE,
        max_requests=requests,
        prefill_chunk=chunk,
        shared_chunk=max(1, chunk // 2),
        cache_tokens=cache,
    )
    under_way = []
    for seed, tokens, steps in asked:
        sampler = Forced(random_text(seed, tokens))
        under_way.append((seed, sampler, engine.submit(any_prompt(seed), sampler)))
        for _ in range(steps):
            engine.step()
            check_books(engine)
    finish_all(engine)
    check_books(engine)
    for seed, sampler, request in under_way:
        assert request.finished and request.error is None
        alone = forced_logits(again(ENGINE), any_prompt(seed), sampler.said)
        torch.testing.assert_close(sampler.logits, alone, atol=BOUND, rtol=0)


def test_answers_under_way_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = again(ENGINE)
    steps = steps_of(engine, monkeypatch)
    requests = [engine.submit(text(seed, 20), Forced([14, 15, 16])) for seed in range(3)]
    finish_all(engine)
    assert steps == [[20, 20, 20], [1, 1, 1], [1, 1, 1]]
    assert all(len(request.ready) == 3 for request in requests)


def test_a_long_prompt_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside answers under way it goes in small chunks, and they get a token in each of its steps."""
    engine = again(ENGINE, prefill_chunk=100, shared_chunk=25)
    first = engine.submit(text(0, 10), Forced([14] * 12))
    engine.step()
    engine.submit(text(1, 200), Forced([15] * 2))
    steps = steps_of(engine, monkeypatch)
    for _ in range(8):
        engine.step()
    assert steps == [[25], [1]] * 8
    assert first.answered == 9
    finish_all(engine)


def test_first_come_first_served() -> None:
    """One request that needs most of the cache is not overtaken for ever by small ones that would fit."""
    engine = again(ENGINE, cache_tokens=64)
    running = engine.submit(text(0, 10), Forced([14] * 6))
    engine.step()
    large = engine.submit(text(1, 50), Forced([14] * 5))
    small = [engine.submit(text(2 + seed, 4), Forced([14] * 3)) for seed in range(20)]
    while not running.finished:
        engine.step()
        assert all(not request.answered for request in (large, *small))
    while not large.finished:
        engine.step()
        assert all(not request.answered for request in small)
    served: list[int] = []
    while engine._active or engine._waiting:
        engine.step()
        served += [at for at, request in enumerate(small) if request.answered and at not in served]
    assert served == list(range(20))
    check_books(engine)


def test_no_more_than_max_requests_are_under_way() -> None:
    engine = again(ENGINE, max_requests=2)
    for seed in range(7):
        engine.submit(text(seed, 5), Forced([14] * 4))
    while engine._active or engine._waiting:
        engine.step()
        assert len(engine._active) <= 2


# Pages


@pytest.mark.parametrize("seed", range(12))
def test_cancelling_at_any_step_returns_every_page(seed: int) -> None:
    """A random walk of submitting, stepping and cancelling in a cache that is always too small."""
    rng = random.Random(seed)
    engine = again(ENGINE, cache_tokens=192, prefill_chunk=24, shared_chunk=8, max_requests=4)
    requests = []
    for _ in range(120):
        choice = rng.random()
        if choice < 0.3:
            prompt, tokens = any_prompt(rng.randint(0, 15)), rng.randint(1, 30)
            try:
                requests.append(engine.submit(prompt, Forced([14] * tokens)))
            except CapacityError:
                assert len(prompt.ids) + tokens - 1 > 192
        elif choice < 0.4 and requests:
            engine.cancel(rng.choice(requests))
        else:
            engine.step()
        check_books(engine)
    for request in requests:
        engine.cancel(request)
    check_books(engine)
    assert not engine._active and not engine._waiting
    assert all(request.finished and request.error is None for request in requests)
    prompt = any_prompt(3)
    torch.testing.assert_close(
        forced_logits(engine, prompt), forced_logits(again(ENGINE), prompt), atol=BOUND, rtol=0
    )


def test_memory_cannot_run_out_within_an_answer() -> None:
    """All that admitted requests may become is promised, so the next one waits although pages are free."""
    engine = again(ENGINE, cache_tokens=64)
    first = engine.submit(text(0, 8), Forced([14] * 40))
    second = engine.submit(text(1, 8), Forced([14] * 40))
    engine.step()
    assert engine.cache.pages.available == 1 and first.pages == 1
    assert first.answered == 1 and second.answered == 0 and not second.pages
    finish_all(engine)
    assert first.answered == second.answered == 40


def test_a_dropped_engine_gives_its_memory_back_at_once() -> None:
    """Without waiting for a collection: a cache may be as large as the model."""
    engine = again(ENGINE)
    sampled(engine, any_prompt(3), max_tokens=3)
    keys = weakref.ref(engine.cache.pool.keys)
    gc.disable()
    try:
        del engine
        assert keys() is None
    finally:
        gc.enable()


# Threads


@pytest.mark.parametrize("threads", [2, 16, 64])
def test_threads_each_read_their_own_answer(threads: int) -> None:
    engine = again(ENGINE, max_requests=8)
    params = {"max_tokens": 12, "temperature": 1.0, "seed": 3}
    expected = {seed: sampled(again(ENGINE), any_prompt(seed), **params) for seed in range(threads)}
    found: dict[int, list[int]] = {}
    readers = [
        threading.Thread(
            target=lambda seed=seed: found.update({seed: sampled(engine, any_prompt(seed), **params)})
        )
        for seed in range(threads)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
    assert found == expected
    check_books(engine)


def test_threads_that_leave_early_do_not_hold_up_the_others() -> None:
    """Readers that stop, are cancelled from outside or fail, among others that read to the end."""
    engine = again(ENGINE, cache_tokens=256, max_requests=4)
    done: list[int] = []

    def read(number: int) -> None:
        request = engine.submit(any_prompt(number), Forced([14 + number] * 20))
        if number % 5 == 2:
            threading.Timer(0.002 * number, engine.cancel, (request,)).start()
        for count, _ in enumerate(engine.tokens(request), 1):
            if number % 5 == 1 and count == 3:
                break
        done.append(number)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(25)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
    assert sorted(done) == list(range(25))
    engine.step()
    check_books(engine)
    assert not engine._active and not engine._waiting


def test_a_thread_that_dies_in_a_step_leaves_the_others_their_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another reader waits for the step that kills its thread, and must be woken to take the next itself."""
    engine = again(ENGINE)
    forward = Runner.forward
    inside, waiting = threading.Event(), threading.Event()

    def die_once(self: Runner, parts: object) -> object:
        if threading.current_thread() is dying:
            inside.set()
            assert waiting.wait(60)
            raise SystemExit
        return forward(self, parts)

    monkeypatch.setattr(Runner, "forward", die_once)
    first = engine.submit(text(0, 20), Forced([14] * 6))
    second = engine.submit(text(1, 20), Forced([15] * 6))
    found: list[int] = []

    def die() -> None:
        with contextlib.suppress(SystemExit):  # or pytest takes it for a failure of the test
            list(engine.tokens(first))

    dying = threading.Thread(target=die)
    other = threading.Thread(target=lambda: found.extend(token.id for token in engine.tokens(second)))
    dying.start()
    assert inside.wait(60)
    other.start()
    waiting.set()
    for reader in (dying, other):
        reader.join(60)
    assert found == [15] * 6
    assert first.finished and second.finished
    check_books(engine)


def test_a_finaliser_may_cancel_in_the_middle_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped stream in a reference cycle is closed by the collector, which may run anywhere."""
    engine = again(ENGINE)
    cycle: list = [engine.tokens(engine.submit(text(0, 20), Forced([14] * 9)))]
    next(cycle[0])
    cycle.append(cycle)
    other = engine.submit(text(1, 20), Forced([15] * 4))
    forward = Runner.forward

    def collecting(self: Runner, parts: list) -> torch.Tensor:
        gc.collect()
        return forward(self, parts)

    monkeypatch.setattr(Runner, "forward", collecting)
    del cycle
    engine.step()
    check_books(engine)
    assert engine._active == [other]
    assert len(list(engine.tokens(other))) == 4


# Faults: they end the requests that they touch, and no others


def healthy(engine: Engine) -> None:
    check_books(engine)
    assert not engine._active and not engine._waiting
    prompt = any_prompt(1)
    torch.testing.assert_close(
        forced_logits(engine, prompt), forced_logits(again(ENGINE), prompt), atol=BOUND, rtol=0
    )


def test_logits_that_are_not_finite_end_one_request() -> None:
    """The picture's infinity stays in its own text, and nothing of it is found by a later request."""
    engine = again(ENGINE)
    bad = random_pixels(ENGINE.config.vision, 4, 5, 0)
    bad[0, 0, 0] = np.inf
    poisoned = make_prompt(ENGINE.config.vision, random_text(77, 20), bad, [14])
    good = engine.submit(any_prompt(4), Forced([14] * 5))
    request = engine.submit(poisoned, Sampler(SamplingParams()))
    with pytest.raises(PixedgeError, match="logits are not finite"):
        list(engine.tokens(request))
    assert len(list(engine.tokens(good))) == 5
    again_bad = engine.submit(poisoned, Sampler(SamplingParams()))
    engine.step()
    assert again_bad.cached == 0
    finish_all(engine)
    healthy(engine)


def test_a_picture_that_cannot_be_encoded_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = again(ENGINE)
    encode = type(engine.vision).encode

    def failing(self: object, pixels: np.ndarray) -> torch.Tensor:
        if pixels.shape[2] == 5 * ENGINE.config.vision.patch_size:
            raise PixedgeError("no such picture")
        return encode(self, pixels)

    monkeypatch.setattr(type(engine.vision), "encode", failing)
    vision = ENGINE.config.vision
    bad = engine.submit(make_prompt(vision, random_pixels(vision, 2, 5, 9), [14]), Forced([14]))
    good = engine.submit(make_prompt(vision, random_pixels(vision, 2, 4, 9), [14]), Forced([14, 14]))
    with pytest.raises(PixedgeError, match="no such picture"):
        list(engine.tokens(bad))
    assert len(list(engine.tokens(good))) == 2
    healthy(engine)


@pytest.mark.parametrize("stage", ["prefill", "decode", "head"])
def test_an_error_in_the_decoder_ends_that_step_s_requests(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = again(ENGINE)
    running = [engine.submit(text(seed, 20), Forced([14] * 9)) for seed in range(2)]
    if stage != "prefill":
        engine.step()
    with monkeypatch.context() as patch:
        broken = engine.decoder.lm_head if stage == "head" else engine.decoder.layers[-1]
        patch.setattr(broken, "forward", lambda *_: 1 / 0)
        engine.step()
    waiting = engine.submit(text(5, 20), Forced([14] * 9))
    for request in running:
        with pytest.raises(ZeroDivisionError):
            list(engine.tokens(request))
    assert len(list(engine.tokens(waiting))) == 9
    healthy(engine)


def test_an_interrupted_step_can_be_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl+C within the decoder ends the loop that reads, and no other request."""
    engine = again(ENGINE)
    other = engine.submit(text(1, 20), Forced([15] * 4))
    tokens = engine.tokens(engine.submit(text(0, 20), Forced([14] * 9)))
    next(tokens)
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(engine.decoder.layers[-1], "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(tokens)
    assert len(list(engine.tokens(other))) == 4
    healthy(engine)


@pytest.mark.parametrize("seed", [1, 8])
def test_a_request_larger_than_the_cache_is_refused_with_both_numbers(seed: int) -> None:
    """Pictures count like text, and are not encoded first; what fits is served next."""
    engine = again(ENGINE, cache_tokens=48)
    engine.vision.asked.clear()
    vision = ENGINE.config.vision
    large = make_prompt(vision, random_pixels(vision, 6, 7, seed), random_text(seed, 2))
    with pytest.raises(
        CapacityError, match=r"50 tokens and an answer of up to 1 do not fit the cache of 48;"
    ):
        engine.submit(large, Sampler(SamplingParams(max_tokens=1)))
    with pytest.raises(
        CapacityError, match=r"9 tokens and an answer of up to 41 do not fit the cache of 48;"
    ):
        engine.submit(text(seed, 9), Sampler(SamplingParams(max_tokens=41)))
    assert engine.vision.asked == []
    assert len(sampled(engine, text(seed, 9), max_tokens=40)) == 40
    check_books(engine)
