"""What was computed once is found again, and never where anything before it differs."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixedge.engine import Engine
from pixedge.kernels.attention import PAGE
from pixedge.pages import Pages
from pixedge.pictures import PictureCache
from pixedge.prefix import PageNames, hash_picture
from pixedge.request import Picture
from pixedge.tokenizer import Prompt
from tests.engines import Forced, again, check_books, finish_all, forced_logits, sampled
from tests.random_models import make_prompt, random_engine, random_pixels, random_text

BOUND = 2e-5
ENGINE = random_engine(11)
VISION = ENGINE.config.vision
PIXELS = random_pixels(VISION, 5, 6, 1)


def asked(*words: list[int], pixels: np.ndarray = PIXELS) -> Prompt:
    return make_prompt(VISION, [1], pixels, *words)


def reused(engine: Engine, prompt: Prompt, answer: tuple[int, ...] = (14,)) -> int:
    request = engine.submit(prompt, Forced(answer))
    list(engine.tokens(request))
    return request.cached


# Prefixes


@settings(max_examples=50)
@given(st.integers(0, 90), st.integers(0, 60), st.integers(1, 40), st.sampled_from([1, 7, 512]))
def test_a_hit_equals_a_cold_run(shared: int, first: int, second: int, chunk: int) -> None:
    engine = again(ENGINE, prefill_chunk=chunk)
    start = random_text(0, shared)
    before = make_prompt(VISION, [1], start, random_text(1, first))
    after = make_prompt(VISION, [1], start, random_text(2, second))
    assert reused(engine, before) == 0
    sampler = Forced([14, 20, 15])
    request = engine.submit(after, sampler)
    list(engine.tokens(request))
    assert request.cached >= min(len(before.ids), 1 + shared) // PAGE * PAGE - PAGE
    assert request.cached <= (len(after.ids) - 1) // PAGE * PAGE
    cold = forced_logits(again(ENGINE), after, sampler.said)
    torch.testing.assert_close(sampler.logits, cold, atol=BOUND, rtol=0)
    check_books(engine)


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33])
def test_at_least_one_token_is_always_computed(length: int) -> None:
    engine = again(ENGINE)
    prompt = make_prompt(VISION, random_text(0, length))
    cold = forced_logits(engine, prompt)
    sampler = Forced([14])
    request = engine.submit(prompt, sampler)
    list(engine.tokens(request))
    assert request.cached == (length - 1) // 16 * 16
    torch.testing.assert_close(sampler.logits, cold, atol=BOUND, rtol=0)


def test_the_answer_is_found_by_the_next_turn() -> None:
    """A chat's second question: neither the picture nor the first question and answer are computed again."""
    engine = again(ENGINE)
    engine.vision.asked.clear()
    first = asked(random_text(0, 20))
    answer = sampled(engine, first, max_tokens=30)
    second = dataclasses.replace(first, ids=(*first.ids, *answer, *random_text(9, 8)))
    sampler = Forced([14])
    request = engine.submit(second, sampler)
    list(engine.tokens(request))
    # the answer's last token was never fed back, so its keys and values are not there
    assert request.cached == (len(first.ids) + 29) // PAGE * PAGE
    assert request.watch.encode == 0 and len(engine.vision.asked) == 1
    torch.testing.assert_close(sampler.logits, forced_logits(again(ENGINE), second), atol=BOUND, rtol=0)


def test_another_question_about_the_same_picture_encodes_nothing() -> None:
    """Also where the picture's last page is shared with text that differs: its embeddings are kept."""
    engine = again(ENGINE)
    engine.vision.asked.clear()
    assert reused(engine, asked(random_text(0, 20))) == 0
    assert reused(engine, asked(random_text(1, 20))) == 36 // PAGE * PAGE
    assert len(engine.vision.asked) == 1


@pytest.mark.parametrize(("y", "x"), [(0, 0), (-1, -1)])
def test_changing_one_pixel_misses_the_cache(y: int, x: int) -> None:
    """Not even the picture's first row of patches may be taken, though its own pixels are the same."""
    engine = again(ENGINE)
    changed = PIXELS.copy()
    changed[2, y, x] = np.nextafter(changed[2, y, x], np.float32(9))
    words = random_text(0, 40)
    assert reused(engine, asked(words)) == 0
    assert reused(engine, asked(words, pixels=changed)) == 0
    assert reused(engine, asked(words, pixels=changed)) == reused(engine, asked(words)) == 64


def test_the_order_of_pictures_is_part_of_the_name() -> None:
    engine = again(ENGINE)
    other = random_pixels(VISION, 5, 6, 2)
    forward, backward = (
        make_prompt(VISION, a, b, random_text(0, 20)) for a, b in ((PIXELS, other), (other, PIXELS))
    )
    assert forward.ids == backward.ids
    first = forced_logits(engine, forward)
    assert reused(engine, backward) == 0
    assert (forced_logits(engine, backward) - first).abs().max() > 1e-2
    torch.testing.assert_close(forced_logits(engine, forward), first, atol=BOUND, rtol=0)


def test_two_who_ask_the_same_at_once_share_what_either_computes() -> None:
    """The second begins behind what the first has computed by then, and pages computed twice are merged."""
    engine = again(ENGINE, prefill_chunk=32)
    engine.vision.asked.clear()
    prompt = asked(random_text(0, 60))
    samplers = [Forced([14, 15]), Forced([14, 15])]
    requests = [engine.submit(prompt, sampler) for sampler in samplers]
    finish_all(engine)
    check_books(engine)
    assert [request.cached for request in requests] == [0, 80]
    assert len(engine.vision.asked) == 1
    torch.testing.assert_close(samplers[0].logits, samplers[1].logits, atol=BOUND, rtol=0)
    whole = again(ENGINE, prefill_chunk=512)
    pair = [whole.submit(prompt, Forced([14, 15])) for _ in range(2)]
    while any(request.prefilling for request in pair):
        whole.step()
    check_books(whole)
    assert list(pair[0].table[:6]) == list(pair[1].table[:6])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_same_seed_same_text_cached_or_not(seed: int, bits: int) -> None:
    engine = again(ENGINE, kv_bits=bits)
    params = {"max_tokens": 25, "temperature": 1.0, "seed": seed}
    prompt = asked(random_text(seed, 30))
    cold = sampled(engine, prompt, **params)
    assert sampled(engine, prompt, **params) == cold
    assert sampled(again(engine, kv_bits=bits), prompt, **params) == cold


def test_8_bits_move_logits_by_little() -> None:
    """Logits of size 1 move by hundredths where keys and values are off by up to 1/254 of their largest."""
    prompt, answer = asked(random_text(0, 60)), random_text(4, 20)
    exact = forced_logits(again(ENGINE), prompt, answer)
    rounded = forced_logits(again(ENGINE, kv_bits=8), prompt, answer)
    assert 0 < float((rounded - exact).abs().mean()) < 0.02 * float(exact.std())
    chunked = forced_logits(again(ENGINE, kv_bits=8, prefill_chunk=7), prompt, answer)
    torch.testing.assert_close(chunked, rounded, atol=0.1, rtol=0)


def test_room_is_made_by_forgetting_what_was_used_longest_ago() -> None:
    """Six pages, and texts that leave two known and need three: the third text lacks one."""
    engine = again(ENGINE, cache_tokens=96)
    texts = [make_prompt(VISION, random_text(seed, 33)) for seed in range(4)]
    assert reused(engine, texts[0]) == reused(engine, texts[1]) == 0
    assert reused(engine, texts[0]) == 32  # the first is now the one used last
    check_books(engine)
    assert reused(engine, texts[2]) == 0
    check_books(engine)
    assert reused(engine, texts[0]) == 32
    assert reused(engine, texts[1]) == 16  # its end was taken
    finish_all(engine)
    check_books(engine)


def test_a_text_is_forgotten_from_its_end() -> None:
    engine = again(ENGINE, cache_tokens=96)
    prompt = make_prompt(VISION, random_text(0, 81))
    assert reused(engine, prompt) == 0
    reused(engine, make_prompt(VISION, random_text(1, 40)))  # three pages, of which one was fresh
    assert reused(engine, prompt) == 48


# Books


def test_pages_are_taken_and_returned_in_order() -> None:
    pages = Pages(3)
    assert pages.reserve(2) and not pages.reserve(2) and pages.available == 1
    first, second = pages.take(), pages.take()
    assert [first, second] == [0, 1]
    assert pages.keep(first, b"a") == first
    pages.release(second)
    pages.release(first)
    assert pages.available == 3 and pages.find([b"a", b"b"]) == [first] and pages.find([b"b", b"a"]) == []
    pages.hold(first)
    assert pages.available == 2
    assert pages.reserve(2)
    pages.unreserve(2)
    pages.disown(first)
    assert pages.find([b"a"]) == []
    pages.release(first)
    assert pages.available == 3
    with pytest.raises(AssertionError, match="page 0 has no user"):
        pages.release(first)


def test_names_tell_apart_what_differs_anywhere_before() -> None:
    places = np.arange(4, 12)
    ids = list(range(40))
    base = PageNames(ids, [(b"x" * 32, places)]).first(2)
    assert PageNames(ids[:33], [(b"x" * 32, places)]).first(2) == base
    assert len({*base, *PageNames(ids, [(b"y" * 32, places)]).first(2)}) == 4
    assert len({*base, *PageNames(ids, []).first(2)}) == 4
    late = PageNames([*ids[:31], 99], [(b"x" * 32, places)]).first(2)
    assert late[0] == base[0] and late[1] != base[1]
    growing = PageNames(ids[:20], [(b"x" * 32, places)])
    assert growing.first(1) == base[:1]
    for token in ids[20:]:
        growing.append(token)
    assert growing.first(2) == base


def test_a_picture_s_hash_knows_its_shape() -> None:
    pixels = np.zeros((3, 4, 8), np.float32)
    assert hash_picture(pixels) == hash_picture(pixels.copy())
    assert hash_picture(pixels) != hash_picture(pixels.reshape(3, 8, 4))
    assert hash_picture(pixels) != hash_picture(np.full_like(pixels, -0.0))


def test_pictures_are_kept_within_their_bytes() -> None:
    """Three fit; the one used longest ago goes, and one larger than all of it is never kept."""
    encoded: list[bytes] = []

    def encode(picture: Picture) -> torch.Tensor:
        encoded.append(picture.hash)
        return torch.zeros(len(picture.places), 8)

    def picture(name: bytes, patches: int = 4) -> Picture:
        return Picture(np.zeros((3, 1, 1), np.float32), name, np.arange(patches))

    cache = PictureCache(encode, 3 * 4 * 8 * 4)
    for name in (b"a", b"b", b"c"):
        assert cache.get(picture(name)) is None
        cache.encode(picture(name))
    assert cache.get(picture(b"a")) is not None
    cache.encode(picture(b"d"))
    assert cache.get(picture(b"b")) is None and cache.get(picture(b"a")) is not None
    cache.encode(picture(b"large", 13))
    assert cache.get(picture(b"large")) is None and cache.held == 3 * 4 * 8 * 4
    assert encoded == [b"a", b"b", b"c", b"d", b"large"]


def test_no_room_for_pictures_is_no_error() -> None:
    engine = again(ENGINE, picture_bytes=0, prefill_chunk=5)
    prompt = asked(random_text(0, 20))
    torch.testing.assert_close(
        forced_logits(engine, prompt), forced_logits(again(ENGINE), prompt), atol=BOUND, rtol=0
    )
