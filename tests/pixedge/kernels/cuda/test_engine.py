"""What the engine promises, on the GPU kernels: however a prompt is cut and shared out, the same follows."""

import random
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixedge.answer_format import AnswerFormat
from pixedge.constraint import Constraint
from pixedge.errors import CapacityError, PixedgeError
from pixedge.sampling import Sampler, SamplingParams
from pixedge.tokenizer import Prompt

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.gpu_runner import GpuRunner
from tests.engines import Forced, again, check_books, finish_all, forced_logits, prompt_logits, sampled
from tests.gpu_engines import Pair, random_pair
from tests.random_models import make_prompt, random_pixels, random_text

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = random_text(7, 3)
BOUND = 0.03
"""Of logits of about 1: a few roundings to float16 on the way."""
EIGHT_BITS = 0.1


@pytest.fixture(scope="module")
def pair() -> Pair:
    return random_pair()


def text(seed: int, tokens: int) -> Prompt:
    return make_prompt(None, random_text(seed, tokens, 90))  # type: ignore[arg-type]


def mixed(pair: Pair) -> Prompt:
    """Text, two pictures, text: 18 tokens, so that one page of a known prompt is full."""
    vision = pair.gpu.config.vision
    pictures = random_pixels(vision, 1, 2, 1), random_pixels(vision, 2, 1, 2)
    return make_prompt(
        vision, random_text(0, 4), pictures[0], random_text(1, 3), pictures[1], random_text(2, 4)
    )


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_logits_are_those_of_the_decoder_in_torch() -> None:
    """A prompt with pictures in two chunks, the last of two tokens, then an answer; layers have own pages."""
    pair = random_pair(layers=2)
    found = forced_logits(again(pair.gpu, prefill_chunk=16), mixed(pair), WORDS)
    expected = forced_logits(pair.exact, mixed(pair), WORDS)
    assert distance(found, expected) < BOUND
    assert isinstance(pair.gpu.runner, GpuRunner)


@pytest.mark.parametrize(("kind", "dtype"), [("own", torch.bfloat16), ("imported", torch.float16)])
def test_either_type_and_other_quantisers_weights(kind: str, dtype: torch.dtype) -> None:
    """Zero points that are not 8, columns in another order, and embeddings in host memory."""
    pair = random_pair(dtype, kind=kind, on_device=False)
    found = forced_logits(pair.gpu, mixed(pair), WORDS)
    expected = forced_logits(pair.exact, mixed(pair), WORDS)
    assert distance(found, expected) < (BOUND if dtype == torch.float16 else 10 * BOUND)


def test_a_cache_of_8_bits_stays_within_its_bound(pair: Pair) -> None:
    engine = again(pair.gpu, kv_bits=8)
    assert engine.cache.pool.keys.dtype == torch.int8
    found, exact = (forced_logits(each, mixed(pair), WORDS) for each in (engine, pair.exact))
    assert BOUND / 100 < distance(found, exact) < EIGHT_BITS


def test_a_batch_says_what_each_says_alone(pair: Pair) -> None:
    """Three that come at different times, of other lengths, in graphs for 2 and 4; one with pictures."""
    engine = again(pair.gpu, prefill_chunk=18, shared_chunk=7, max_requests=3)
    prompts = [text(1, 2), mixed(pair), text(3, 1)]
    samplers = [Forced(random_text(seed, 3)) for seed in range(3)]
    for prompt, sampler in zip(prompts, samplers, strict=True):
        engine.submit(prompt, sampler)
        engine.step()
    finish_all(engine)
    check_books(engine)
    for prompt, sampler in zip(prompts, samplers, strict=True):
        assert distance(sampler.logits, forced_logits(pair.exact, prompt, sampler.said)) < BOUND


def test_a_known_prompt_answers_as_a_new_one(pair: Pair) -> None:
    """All but the last page is found; what is left is computed in another number of rows."""
    engine = again(pair.gpu)
    cold = forced_logits(engine, mixed(pair), WORDS)
    asked = len(pair.gpu.vision.asked)  # type: ignore[attr-defined]
    request = engine.submit(mixed(pair), sampler := Forced(WORDS))
    finish_all(engine)
    assert request.cached == len(mixed(pair).ids) // 16 * 16
    assert len(pair.gpu.vision.asked) == asked  # type: ignore[attr-defined]
    assert distance(sampler.logits, cold) < BOUND


class Among:
    """A constraint that lets two tokens through."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def allowed(self) -> NDArray[np.int64]:
        return np.array(self.ids)

    def advance(self, token: int) -> None:
        assert token in self.ids


def test_a_format_holds_a_greedy_answer_beside_one_without(pair: Pair) -> None:
    """The device knows no formats: what it chose for the row must not be used, though it lies ready."""
    engine = again(pair.gpu)
    free = engine.submit(text(5, 3), Sampler(SamplingParams(max_tokens=4)))
    finish_all(engine)
    (first, *_) = [token.id for token in free.ready]
    ids = [token for token in (7, 11, 13) if token != first][:2]
    rule = SamplingParams(max_tokens=4, answer_format=AnswerFormat("regex", "[ab]+"))
    held = Sampler(rule, (), cast(Constraint, Among(*ids)))
    requests = [
        engine.submit(text(5, 3), held),
        engine.submit(text(5, 3), Sampler(SamplingParams(max_tokens=4))),
    ]
    finish_all(engine)
    assert {token.id for token in requests[0].ready} <= set(ids) and len(requests[0].ready) == 4
    assert [token.id for token in requests[1].ready] == [token.id for token in free.ready]


def test_the_device_chooses_as_the_host_does(pair: Pair) -> None:
    """The same seeds with and without the log-probabilities that only the host reports, in one batch."""
    rules = [
        {},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.8, "top_k": 5, "seed": 4},
        {"temperature": 1.2, "top_p": 0.7, "min_p": 0.02, "seed": 5},
    ]
    engine = again(pair.gpu, max_requests=4)
    answers = []
    for more in ({}, {"logprobs": 1}):
        requests = [
            engine.submit(text(seed, 2), Sampler(SamplingParams(max_tokens=3, **rule, **more)))
            for seed, rule in enumerate(rules)
        ]
        finish_all(engine)
        answers.append([list(request.ready) for request in requests])
    for one, other in zip(*answers, strict=True):
        assert [token.id for token in one] == [token.id for token in other]
        for a, b in zip(one, other, strict=True):
            assert abs(a.logprob - b.logprob) < 1e-4
            assert not a.top_logprobs and len(b.top_logprobs) == 1


def test_penalties_and_plain_requests_share_a_batch(pair: Pair) -> None:
    """A prompt of which the model says a word again, unless that is made unlikely."""
    engine, exact = again(pair.gpu), again(pair.exact)
    asked = next(
        prompt
        for prompt in (text(seed, 5) for seed in range(200))
        if sampled(exact, prompt, max_tokens=1)[0] in prompt.ids
    )
    rules = {"max_tokens": 2}, {"max_tokens": 2, "repetition_penalty": 9.0}
    samplers = [Sampler(SamplingParams(**rule), asked.ids) for rule in rules]
    requests = [engine.submit(asked, sampler) for sampler in samplers]
    finish_all(engine)
    plain, penalised = ([token.id for token in request.ready] for request in requests)
    assert plain == sampled(exact, asked, **rules[0])
    assert penalised == sampled(exact, asked, **rules[1])
    assert plain[0] in asked.ids and plain[0] != penalised[0]


def test_scores_are_those_of_the_decoder_in_torch(pair: Pair) -> None:
    prompt = mixed(pair)
    found, expected = again(pair.gpu, prefill_chunk=11).score(prompt), pair.exact.score(prompt)
    assert found.shape == expected.shape and distance(found, expected) < BOUND


def test_cancelling_leaves_the_others_alone(pair: Pair) -> None:
    engine = again(pair.gpu)
    staying, going = Forced(random_text(1, 4)), Forced(random_text(2, 4))
    engine.submit(text(1, 3), staying)
    request = engine.submit(text(2, 5), going)
    for _ in range(2):
        engine.step()
    engine.cancel(request)
    finish_all(engine)
    check_books(engine)
    assert len(going.rows) == 2 and request.finished
    assert distance(staying.logits, forced_logits(pair.exact, text(1, 3), staying.said)) < BOUND


def test_more_requests_than_a_graph_takes(pair: Pair) -> None:
    engine = again(pair.gpu, max_requests=3)
    assert engine.runner.passes.largest == 4  # type: ignore[attr-defined]
    wide = again(pair.gpu, max_requests=18)
    assert wide.runner.passes.largest == 16  # type: ignore[attr-defined]
    samplers = [Forced(random_text(seed, 2)) for seed in range(18)]
    for seed, sampler in enumerate(samplers):
        wide.submit(text(seed, 1), sampler)
    finish_all(wide)
    for seed in (0, 16, 17):
        expected = forced_logits(pair.exact, text(seed, 1), samplers[seed].said)
        assert distance(samplers[seed].logits, expected) < BOUND


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_logits_that_are_not_finite_end_one_request(pair: Pair) -> None:
    """An embedding that is not a number: its request ends with the reason, the one beside it does not."""
    engine = random_pair().gpu
    engine.decoder.weights.embeddings[50] = torch.nan  # type: ignore[union-attr, index]
    bad = engine.submit(make_prompt(None, [20, 50]), Sampler(SamplingParams(max_tokens=2)))  # type: ignore[arg-type]
    good = engine.submit(make_prompt(None, [20, 21]), Sampler(SamplingParams(max_tokens=2)))  # type: ignore[arg-type]
    finish_all(engine)
    assert isinstance(bad.error, PixedgeError) and "not finite" in str(bad.error)
    assert good.error is None and len(good.ready) == 2


def test_random_requests_take_no_more_memory(pair: Pair) -> None:
    """Any mixture works in the tensors that were there, and leaves answers as they were."""
    engine = again(pair.gpu, cache_tokens=128, max_requests=4, prefill_chunk=18)
    passes = engine.runner.passes  # type: ignore[attr-defined]
    holders = (passes.buffers, passes.graph.buffers)

    def places() -> list[tuple[int, int]]:
        return [(each.data_ptr(), each.nbytes) for holder in holders for each in vars(holder).values()]

    before, rng = places(), random.Random(0)
    first = prompt_logits(engine, text(3, 9))
    for _ in range(10):
        prompt = mixed(pair) if rng.random() < 0.3 else text(rng.randint(0, 9), rng.randint(1, 12))
        params = SamplingParams(
            max_tokens=rng.randint(1, 3), temperature=rng.choice((0.0, 1.0)), top_p=rng.choice((1.0, 0.9))
        )
        request = engine.submit(prompt, Sampler(params))
        engine.step()
        if rng.random() < 0.2:
            engine.cancel(request)
    finish_all(engine)
    check_books(engine)
    assert places() == before
    assert distance(prompt_logits(engine, text(3, 9)), first) < BOUND
    with pytest.raises(CapacityError):
        engine.submit(text(0, 300), Forced([1]))
