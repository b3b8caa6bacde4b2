"""The sampler against formulas on tiny vocabularies, and stop strings against a naive search."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixedge.errors import PixedgeError, UsageError
from pixedge.sampling import Sampler, SamplingParams, StopStrings

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def draw(count: int, logits: torch.Tensor = LOGITS, **params) -> Counter:
    """Count the tokens of independent draws: a fresh seed each, so that penalties never build up."""
    tokens = (Sampler(SamplingParams(seed=seed, **params)).sample(logits).id for seed in range(count))
    return Counter(tokens)


def chi_square(counts: Counter, probs: list[float]) -> float:
    total = sum(counts.values())
    return sum((counts[token] - total * p) ** 2 / (total * p) for token, p in enumerate(probs) if p > 0)


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature):
    counts = draw(3000, temperature=temperature)
    # 4 degrees of freedom: 18.5 is exceeded once in a thousand, and the seeds are fixed.
    assert chi_square(counts, softmax((LOGITS / temperature).tolist())) < 18.5


def test_one_seed_draws_a_sequence_that_follows_the_softmax():
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3))
    counts = Counter(sampler.sample(LOGITS).id for _ in range(3000))
    assert chi_square(counts, softmax(LOGITS.tolist())) < 18.5


def test_top_k_renormalises_over_the_k_best():
    counts = draw(2000, temperature=1.0, top_k=2)
    assert set(counts) == {0, 1}
    assert chi_square(counts, softmax([2.0, 1.0])) < 10.8


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    probs = softmax(LOGITS.tolist())  # .61, .22, .14, .03, .004
    for top_p, kept in [(0.01, 1), (probs[0] - 1e-4, 1), (probs[0] + 1e-4, 2), (0.9, 3), (0.99, 4), (1.0, 5)]:
        counts = draw(1500, temperature=1.0, top_p=top_p)
        assert set(counts) == set(range(kept)), top_p


def test_min_p_keeps_tokens_relative_to_the_best():
    # exp(-1) = .368 and exp(-1.5) = .223 of the best token's probability.
    assert set(draw(500, temperature=1.0, min_p=0.36)) == {0, 1}
    assert set(draw(500, temperature=1.0, min_p=0.22)) == {0, 1, 2}
    assert set(draw(200, temperature=1.0, min_p=1.0)) == {0}


def test_truncation_happens_after_the_temperature():
    # At temperature 4 token 1 has exp(-.25) = .78 of the best token's probability, at 1 only .37.
    assert set(draw(500, temperature=4.0, min_p=0.7)) == {0, 1}
    assert set(draw(500, temperature=1.0, min_p=0.7)) == {0}


def test_top_p_counts_within_top_k():
    # Of the two best, token 0 has .73 (of all five .61): top_p = .7 is reached by it alone.
    assert set(draw(500, temperature=1.0, top_k=2, top_p=0.7)) == {0}
    assert set(draw(500, temperature=1.0, top_p=0.7)) == {0, 1}


floats = st.floats(-30, 30, width=32)
vocabularies = st.lists(floats, min_size=1, max_size=40).map(torch.tensor)


@given(vocabularies, st.integers(0, 2**63 - 1), st.floats(0.01, 10))
def test_top_k_1_and_tiny_top_p_equal_greedy(logits, seed, temperature):
    best = Sampler(SamplingParams()).sample(logits)
    assert best.id == int(torch.argmax(logits))
    for params in ({"top_k": 1}, {"top_p": 1e-9}):
        sampler = Sampler(SamplingParams(temperature=temperature, seed=seed, **params))
        assert sampler.sample(logits).id == best.id


@given(vocabularies, st.integers(0, 9), st.floats(0.05, 1.0), st.floats(0, 1), st.integers(0, 1000))
def test_draws_stay_inside_the_support_of_the_formula(logits, top_k, top_p, min_p, seed):
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    scores = [value / 0.7 for value in logits.tolist()]
    kept = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = [i for i in kept if math.exp(scores[i] - scores[kept[0]]) >= min_p - 1e-5]
    kept = kept[: top_k or None]
    mass, support = 0.0, set()
    for i, p in zip(kept, softmax([scores[i] - scores[kept[0]] for i in kept]), strict=True):
        if mass < top_p + 1e-5:
            support.add(i)
        mass += p
    assert Sampler(params).sample(logits).id in support


def test_ties_are_cut_by_id_not_by_chance():
    logits = torch.zeros(2000)
    assert max(draw(300, logits, temperature=1.0, top_k=3)) == 2
    assert Sampler(SamplingParams()).sample(logits).id == 0


@pytest.mark.parametrize("vocab", [2, 4, 16])
def test_top_p_that_is_reached_exactly_takes_no_more(vocab):
    """The fewest tokens that reach it: a comparison with > for >= takes one more, but only at a tie.

    Equal tokens have probabilities of a power of two, whose sums are exact.
    """
    for kept in range(1, vocab):
        counts = draw(30 * vocab, torch.zeros(vocab), temperature=1.0, top_p=kept / vocab)
        assert set(counts) == set(range(kept))


def test_seed_0_is_a_seed():
    """0 is false in Python: taken for "none", every answer would be another one."""
    assert Sampler(SamplingParams(temperature=1.0, seed=0)).seed == 0
    logits = torch.zeros(1000)
    first = [Sampler(SamplingParams(temperature=1.0, seed=0)).sample(logits).id for _ in range(5)]
    assert len(set(first)) == 1


def test_nucleus_wider_than_the_first_look():
    # 4000 equal tokens and top_p = .5: the 2000 lowest ids, more than the 512 that are looked at first.
    counts = draw(400, torch.zeros(4000), temperature=1.0, top_p=0.5)
    assert 1500 < max(counts) < 2000


def test_same_seed_same_tokens_whatever_else_runs():
    steps = torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=11)
    alone, among_others = Sampler(params), Sampler(params)
    first = [alone.sample(row).id for row in steps]
    second = []
    for row in steps:
        torch.rand(7)
        Sampler(SamplingParams(temperature=1.0)).sample(row)
        second.append(among_others.sample(row).id)
    assert first == second


def test_a_random_seed_is_reported_and_repeats():
    steps = torch.randn(30, 100, generator=torch.Generator().manual_seed(0))
    one = Sampler(SamplingParams(temperature=1.5))
    again = Sampler(SamplingParams(temperature=1.5, seed=one.seed))
    assert [one.sample(row).id for row in steps] == [again.sample(row).id for row in steps]
    assert Sampler(SamplingParams()).seed != Sampler(SamplingParams()).seed


def test_smallest_temperature_is_greedy_and_not_nan():
    assert set(draw(50, temperature=5e-324)) == {0}
    assert set(draw(50, LOGITS * 1e30, temperature=1e-30)) == {0}


def test_presence_and_frequency_penalties_follow_the_formula():
    sampler = Sampler(SamplingParams(presence_penalty=0.2, frequency_penalty=0.5))
    logits = torch.tensor([2.0, 1.0, 0.0])
    expected, counts = [], [0, 0, 0]
    for _ in range(12):
        scores = [float(x) - 0.5 * c - 0.2 * (c > 0) for x, c in zip(logits, counts, strict=True)]
        best = max(range(3), key=scores.__getitem__)
        counts[best] += 1
        expected.append(best)
    assert [sampler.sample(logits).id for _ in range(12)] == expected
    assert set(expected) == {0, 1, 2}


def test_presence_and_frequency_ignore_the_prompt():
    sampler = Sampler(SamplingParams(presence_penalty=2.0, frequency_penalty=2.0), prompt_ids=[0] * 50)
    assert sampler.sample(torch.tensor([1.0, 0.0])).id == 0


def test_repetition_penalty_covers_prompt_and_answer():
    params = SamplingParams(repetition_penalty=2.0)
    # Prompt token 0: 1.0 / 2 = .5 < .8; afterwards token 1 was said: .8 / 2 = .4 < .5.
    sampler = Sampler(params, prompt_ids=[0])
    assert [sampler.sample(torch.tensor([1.0, 0.8])).id for _ in range(2)] == [1, 0]
    # Negative logits are multiplied, or the penalty would reward: -1.0 * 2 = -2 < -1.5.
    assert Sampler(params, prompt_ids=[0]).sample(torch.tensor([-1.0, -1.5])).id == 1


@given(vocabularies, st.integers(0, 20))
def test_logprobs_are_those_of_the_unmodified_distribution(logits, count):
    params = SamplingParams(
        temperature=2.0, top_k=3, repetition_penalty=1.5, presence_penalty=1.0, seed=1, logprobs=count
    )
    sampler = Sampler(params, prompt_ids=[0])
    expected = torch.log_softmax(logits.double(), 0).tolist()
    for _ in range(2):
        token = sampler.sample(logits)
        assert token.logprob == pytest.approx(expected[token.id], abs=1e-4)
        ranked = sorted(range(len(expected)), key=lambda i: (-float(logits[i]), i))[:count]
        assert [i for i, _ in token.top_logprobs] == ranked
        assert [p for _, p in token.top_logprobs] == pytest.approx([expected[i] for i in ranked], abs=1e-4)


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40), st.floats(-40, 40, width=32))
def test_a_tokens_logprob_is_that_of_its_entry(values, shift):
    """Clients look a token up in its own list, and compare: one of the two was rounded to float32."""
    token = Sampler(SamplingParams(temperature=1.0, logprobs=20)).sample(torch.tensor(values) + shift)
    assert dict(token.top_logprobs).get(token.id, token.logprob) == token.logprob
    likeliest = Sampler(SamplingParams(logprobs=20)).sample(torch.tensor(values) + shift)
    assert likeliest.top_logprobs[0] == (likeliest.id, likeliest.logprob)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, math.nan, True])
def test_numbers_beyond_all_floats_are_a_sentence(name, value):
    with pytest.raises(UsageError, match=f"{name} is .{{1,50}}; it must be "):
        SamplingParams(**{name: value})


def test_logprob_without_top_logprobs():
    token = Sampler(SamplingParams()).sample(LOGITS)
    assert token.top_logprobs == ()
    assert token.logprob == pytest.approx(math.log(softmax(LOGITS.tolist())[0]), abs=1e-5)


def test_logits_are_left_alone_and_any_float_type_is_taken():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        logits = LOGITS.to(dtype)
        before = logits.clone()
        Sampler(SamplingParams(temperature=1.0, repetition_penalty=2.0, seed=0), [1]).sample(logits)
        assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_are_one_sentence(bad):
    with pytest.raises(
        PixedgeError, match=r"1 of the model's 3 logits .* float16 .* run the model in float32"
    ):
        Sampler(SamplingParams()).sample(torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be a number from 0 up"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": -1}, "top_k is -1; it must be 0 .off. or a positive integer"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"min_p": -0.01}, "min_p is -0.01; it must be from 0 to 1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; it must be from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3"),
        ({"seed": -1}, "seed is -1; it must be an integer from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"stop": "END"}, "stop is the string 'END'; give a tuple of strings"),
        ({"stop": ("a", "")}, "stop contains ''"),
        ({"stop": (1,)}, "stop contains 1"),
        ({"stop": None}, "stop is None"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be a positive integer"),
        ({"logprobs": 21}, "logprobs is 21; it must be an integer from 0 to 20"),
    ],
)
def test_wrong_parameters_name_value_and_range(params, sentence):
    with pytest.raises(UsageError, match=sentence):
        SamplingParams(**params)


def test_default_is_greedy_and_the_largest_seed_works():
    assert SamplingParams().greedy
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert Sampler(SamplingParams(temperature=1.0, seed=2**63 - 1)).sample(LOGITS).id < 5


def naive(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Grow the text by one character at a time, and look at its end."""
    for end in range(len(text) + 1):
        for candidate in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(candidate):
                return text[: end - len(candidate)], candidate
    return text, None


few = st.text(alphabet="abé", max_size=4)


@given(st.lists(few, max_size=20), st.lists(few.filter(bool), max_size=3))
def test_stop_strings_equal_a_naive_search_however_text_is_cut(pieces, stop):
    stream = StopStrings(stop)
    text, passed = "", ""
    for piece in pieces:
        text += piece
        passed += stream.push(piece)
        expected, matched = naive(text, stop)
        assert expected.startswith(passed)
        assert stream.matched == matched
        # Nothing is held back longer than it may still begin a stop string.
        held = expected[len(passed) :]
        assert matched is None or not held
        assert not held or any(s.startswith(held) and s != held for s in stop)
    assert (passed + stream.flush(), stream.matched) == naive(text, stop)


def test_without_stop_strings_text_passes():
    stream = StopStrings(())
    assert stream.push("abc") == "abc"
    assert stream.flush() == ""
