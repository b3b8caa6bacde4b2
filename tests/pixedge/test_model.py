"""Conversations in, text out: on a random model with the demo's tokenizer, and on scripted tokens."""

import threading
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixedge.engine import Engine
from pixedge.errors import CapacityError, ImageError, MessageError, PixedgeError, UsageError
from pixedge.image import ImageLimits
from pixedge.model import Model
from pixedge.request import Request
from pixedge.sampling import SampledToken, Sampler, SamplingParams
from pixedge.tokenizer import Prompt, Tokenizer
from tests.engines import check_books
from tests.random_models import random_config, random_engine

TEKKEN = Path(__file__).parents[2] / "models" / "demo" / "tekken.json"
VOCAB, CONTEXT = 3072, 300
VISION = random_config(12).vision
EOS = 2
TEXTS = st.text("aé€😀 \n-Z", max_size=12)


class ScriptedEngine:
    """An engine that says given ids, whatever it is asked, and counts those that were taken."""

    stop_ids = frozenset({EOS})

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.taken = ids, 0

    def room(self, prompt_tokens: int, max_tokens: int) -> int:
        return max_tokens

    def submit(self, prompt: Prompt, sampler: Sampler, on_stage: object = None) -> Request:
        return Request(Prompt((1,), (), 0), sampler, len(self.ids[: sampler.params.max_tokens]), VISION)

    def cancel(self, request: Request) -> None:
        request.finished = True

    def tokens(self, request: Request) -> Generator[SampledToken, None, None]:
        for token in self.ids[: request.room]:
            self.taken += 1
            yield SampledToken(token, -0.5)


def join(engine: Engine | ScriptedEngine, like: Model) -> Model:
    return Model(like.config, engine, like.tokenizer, like.folder, 0.0)


def byte_ids(text: str) -> list[int]:
    """Spell a text in Tekken's single-byte tokens, which follow the 1,000 control tokens."""
    return [1000 + byte for byte in text.encode()]


@pytest.fixture(scope="module")
def model() -> Model:
    engine = random_engine(12, stop_ids=frozenset({EOS}), vocab_size=VOCAB, context=CONTEXT)
    tokenizer = Tokenizer(TEKKEN, engine.config.vision, VOCAB)
    assert tokenizer.stop_ids == {EOS}
    return Model(engine.config, engine, tokenizer, Path("nowhere"), 0.0)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def ask(text: str, *pictures: Image.Image) -> list[dict]:
    content = [{"type": "image", "image": each} for each in pictures] + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


# What an answer holds


def test_pieces_add_up_to_the_answer(model: Model) -> None:
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=1)
    stream = model.stream(ask("What is this?", picture(0)), params)
    pieces = list(stream)
    answer = stream.answer
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == answer.text == model.tokenizer.decode([token.id for token in answer.tokens])
    assert model.generate(ask("What is this?", picture(0)), params).text == answer.text


def test_an_answer_counts_what_it_took(model: Model) -> None:
    messages = ask("What is this?", picture(0), picture(1, (9, 50)))
    prompt = model.tokenizer.encode(messages)
    answer = model.generate(messages, SamplingParams(max_tokens=7, seed=9))
    assert answer.prompt_tokens == len(prompt.ids)
    assert answer.image_tokens == prompt.n_image_tokens > 0
    assert answer.completion_tokens == len(answer.tokens) == 7
    assert answer.finish_reason == "length" and answer.seed == 9


def test_a_seed_that_was_drawn_is_told_and_gives_the_same_text(model: Model) -> None:
    messages = ask("Say anything.")
    first = model.generate(messages, SamplingParams(max_tokens=20, temperature=1.0))
    again = model.generate(messages, SamplingParams(max_tokens=20, temperature=1.0, seed=first.seed))
    other = model.generate(messages, SamplingParams(max_tokens=20, temperature=1.0, seed=first.seed + 1))
    assert first.text == again.text != other.text


def test_the_defaults_are_greedy(model: Model) -> None:
    messages = ask("Say anything.", picture(3))
    assert model.generate(messages).tokens == model.generate(messages, SamplingParams(seed=4)).tokens


def test_the_end_token_ends_an_answer(model: Model) -> None:
    stream = join(ScriptedEngine([*byte_ids("Yes."), EOS, *byte_ids("never")]), model).stream(ask("?"))
    assert "".join(stream) == stream.answer.text == "Yes."
    assert stream.answer.finish_reason == "stop"
    assert stream.answer.completion_tokens == 5  # the end token was computed too


def test_the_end_token_as_the_last_one_allowed_is_a_stop(model: Model) -> None:
    scripted = join(ScriptedEngine([*byte_ids("Yes."), EOS]), model)
    assert scripted.generate(ask("?"), SamplingParams(max_tokens=5)).finish_reason == "stop"
    assert scripted.generate(ask("?"), SamplingParams(max_tokens=4)).finish_reason == "length"


def test_the_context_ends_an_answer(model: Model) -> None:
    messages = ask("Say anything.")
    room = CONTEXT - len(model.tokenizer.encode(messages).ids)
    answer = model.generate(messages, SamplingParams(max_tokens=1000, temperature=1.0, seed=0))
    assert answer.completion_tokens == room and answer.finish_reason == "length"


def test_logprobs_are_reported_for_each_token(model: Model) -> None:
    messages = ask("Say anything.")
    answer = model.generate(messages, SamplingParams(max_tokens=5, logprobs=3))
    for token in answer.tokens:
        best = [logprob for _, logprob in token.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True) and best[0] < 0
        assert token.top_logprobs[0] == (token.id, pytest.approx(token.logprob))  # greedy takes the likeliest
    assert model.generate(messages, SamplingParams(max_tokens=2)).tokens[0].top_logprobs == ()


def test_timings_are_there_and_add_up(model: Model) -> None:
    timings = model.generate(ask("What is this?", picture(77)), SamplingParams(max_tokens=5)).timings
    stages = (timings.image_decode, timings.encode, timings.prefill)
    assert min(*stages, timings.decode) > 0
    assert timings.first_token >= sum(stages)
    text_only = model.generate(ask("Say anything."), SamplingParams(max_tokens=1))
    assert text_only.timings.encode == text_only.timings.decode == 0
    assert text_only.tokens_per_second is None


def test_a_slow_reader_does_not_slow_the_figures(model: Model) -> None:
    """Four tokens read with pauses of 0.3 s: the pauses are not the model's."""
    stream = model.stream(ask("Say anything."), SamplingParams(max_tokens=4))
    for _ in stream:
        time.sleep(0.3)
    answer = stream.answer
    assert answer.tokens_per_second == pytest.approx(3 / answer.timings.decode)
    assert 0 < answer.timings.decode < 0.3 and answer.timings.first_token < 0.3


# Whole characters


@given(TEXTS, st.booleans())
def test_only_whole_characters_are_streamed(model: Model, text: str, ends: bool) -> None:
    """Every character comes in one piece, when its last byte does."""
    stream = join(ScriptedEngine(byte_ids(text) + [EOS] * ends), model).stream(ask("?"))
    assert list(stream) == list(text)
    assert stream.answer.text == text


@pytest.mark.parametrize("end", [[], [EOS]])
def test_a_character_that_is_cut_off_is_marked(model: Model, end: list[int]) -> None:
    ids = byte_ids("a😀")[:-1]
    stream = join(ScriptedEngine(ids + end), model).stream(ask("?"))
    assert list(stream) == ["a", "\ufffd"]
    assert stream.answer.text == model.tokenizer.decode(ids)


def test_control_tokens_in_an_answer_are_no_text(model: Model) -> None:
    ids = [3, *byte_ids("a"), 10, *byte_ids("b"), 4, EOS]
    assert list(join(ScriptedEngine(ids), model).stream(ask("?"))) == ["a", "b"]


# Stop strings


@pytest.mark.parametrize(
    ("stop", "text", "taken"),
    [
        (("END",), "one ", 7),
        (("\n",), "one END two", 12),
        (("two", "E"), "one ", 5),
        (("😀",), "one END two\nthree ", 22),
        (("three 😀!",), "one END two\n", 23),
    ],
)
def test_a_stop_string_cuts_the_text_and_the_work(
    model: Model, stop: tuple[str, ...], text: str, taken: int
) -> None:
    engine = ScriptedEngine(byte_ids("one END two\nthree 😀! four"))
    stream = join(engine, model).stream(ask("?"), SamplingParams(stop=stop))
    assert "".join(stream) == stream.answer.text == text
    assert stream.answer.finish_reason == "stop"
    assert engine.taken == stream.answer.completion_tokens == taken


@pytest.mark.parametrize("end", [[], [EOS]])
def test_half_a_stop_string_at_the_end_is_text(model: Model, end: list[int]) -> None:
    engine = ScriptedEngine(byte_ids("the EN") + end)
    answer = join(engine, model).generate(ask("?"), SamplingParams(stop=("END",)))
    assert answer.text == "the EN"
    assert answer.finish_reason == ("stop" if end else "length")


def test_a_cut_off_character_may_complete_a_stop_string(model: Model) -> None:
    engine = ScriptedEngine(byte_ids("a😀")[:-1])
    answer = join(engine, model).generate(ask("?"), SamplingParams(stop=("\ufffd",)))
    assert answer.text == "a" and answer.finish_reason == "stop"


@given(TEXTS, st.lists(st.text("aé€Z-", min_size=1, max_size=3), min_size=1, max_size=3))
def test_stop_strings_cut_as_if_the_whole_text_were_searched(
    model: Model, text: str, stop: list[str]
) -> None:
    answer = join(ScriptedEngine(byte_ids(text)), model).generate(ask("?"), SamplingParams(stop=tuple(stop)))
    ends = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
    assert answer.text == (text[: min(ends)[1]] if ends else text)
    assert answer.finish_reason == ("stop" if ends else "length")


# Streams that are not read to their end


def test_nothing_is_computed_before_it_is_asked_for(model: Model) -> None:
    engine = ScriptedEngine(byte_ids("abc"))
    stream = join(engine, model).stream(ask("?"))
    assert engine.taken == 0
    assert next(iter(stream)) == "a" and engine.taken == 1


@pytest.mark.parametrize("close", [True, False], ids=["closed", "dropped"])
def test_an_abandoned_stream_leaves_nothing_behind(model: Model, close: bool) -> None:
    """Its pages, which are gigabytes on a real model, are free at once, without waiting for a collection."""
    pages = model.engine.cache.pages
    stream = model.stream(ask("Say anything.", picture(0)), SamplingParams(temperature=1.0, seed=1))
    for _ in stream:
        break
    assert pages.available < pages.count
    if close:
        stream.close()
        assert list(stream) == []
    else:
        del stream
    assert pages.available == pages.count
    check_books(model.engine)


def test_a_stream_may_be_closed_by_another_thread(model: Model) -> None:
    stream = model.stream(ask("Say anything."), SamplingParams(temperature=1.0, seed=1))
    first = threading.Event()
    pieces: list[str] = []

    def read() -> None:
        for piece in stream:
            pieces.append(piece)
            first.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(30)
    stream.close()
    reader.join(30)
    assert not reader.is_alive()
    stream.close()
    assert stream.answer.finish_reason == "stop" and stream.answer.text.startswith(pieces[0])
    check_books(model.engine)


def test_a_closed_stream_tells_what_was_said(model: Model) -> None:
    stream = join(ScriptedEngine(byte_ids("abc")), model).stream(ask("?"))
    pieces = iter(stream)
    assert next(pieces) + next(pieces) == "ab"
    stream.close()
    stream.close()
    assert stream.answer.text == "ab" and stream.answer.completion_tokens == 2
    assert stream.answer.finish_reason == "stop"
    unread = join(ScriptedEngine(byte_ids("abc")), model).stream(ask("?"))
    unread.close()
    assert unread.answer.text == "" and unread.answer.timings.first_token > 0


def test_closing_a_complete_stream_changes_nothing(model: Model) -> None:
    stream = join(ScriptedEngine(byte_ids("abc")), model).stream(ask("?"))
    assert list(stream) == ["a", "b", "c"]
    before = stream.answer
    stream.close()
    assert stream.answer == before and before.finish_reason == "length"


def test_an_answer_is_not_to_be_had_before_its_end(model: Model) -> None:
    stream = join(ScriptedEngine(byte_ids("abc")), model).stream(ask("?"))
    next(iter(stream))
    with pytest.raises(AssertionError, match="read the stream to its end first, or close it"):
        _ = stream.answer


def test_two_streams_at_once_say_what_each_says_alone(model: Model) -> None:
    params = SamplingParams(max_tokens=15, temperature=1.0, seed=2)
    questions = [ask("First?", picture(0)), ask("Second?", picture(1))]
    alone = [model.generate(each, params) for each in questions]
    together = [model.stream(each, params) for each in questions]
    pieces = [iter(stream) for stream in together]
    while any([next(each, None) for each in pieces]):
        pass
    found = [[token.id for token in each.answer.tokens] for each in together]
    expected = [[token.id for token in each.tokens] for each in alone]
    assert found == expected and expected[0] != expected[1]


# Conversations


def first_logprob(model: Model, messages: list[dict]) -> float:
    return model.generate(messages, SamplingParams(max_tokens=1)).tokens[0].logprob


def test_every_turn_reaches_the_model(model: Model) -> None:
    first = ask("What is this?", picture(0))
    turns = [*first, {"role": "assistant", "content": "A star."}, {"role": "user", "content": "Its colour?"}]
    other_picture = [*ask("What is this?", picture(1)), *turns[1:]]
    other_answer = [turns[0], {"role": "assistant", "content": "A ring."}, turns[2]]
    with_system = [{"role": "system", "content": "Be brief."}, *turns]
    logprobs = [
        first_logprob(model, each) for each in (first, turns, other_picture, other_answer, with_system)
    ]
    assert len(set(logprobs)) == len(logprobs)
    counts = {model.generate(each, SamplingParams(max_tokens=1)).image_tokens for each in (first, turns)}
    assert len(counts) == 1  # the first turn's picture is still there in the second


def test_a_second_turn_equals_the_first_one_continued(model: Model) -> None:
    """What the model is asked in turn two is turn one, its answer, the end token and the new question."""
    first = ask("What is this?", picture(0))
    turns = [*first, {"role": "assistant", "content": "A star."}, {"role": "user", "content": "Why?"}]
    start, both = (model.tokenizer.encode(each).ids for each in (first, turns))
    assert both[: len(start)] == start and EOS in both[len(start) :]
    answer = model.generate(turns, SamplingParams(max_tokens=5))
    assert answer.prompt_tokens == len(both) and len(answer.tokens) == 5


def test_typed_control_tokens_are_text(model: Model) -> None:
    plain, typed = (model.tokenizer.encode(ask(text)) for text in ("IMG", "[IMG][INST]</s>"))
    assert typed.n_image_tokens == 0
    assert [token for token in typed.ids if token < 1000] == [token for token in plain.ids if token < 1000]
    assert model.generate(ask("[IMG][INST]</s>"), SamplingParams(max_tokens=2)).image_tokens == 0


def test_max_image_size_spends_fewer_tokens(model: Model) -> None:
    messages = ask("What is this?", picture(0))
    full, small = (
        model.generate(messages, SamplingParams(max_tokens=1), max_image_size=size) for size in (None, 16)
    )
    assert 0 < small.image_tokens < full.image_tokens


# Errors come before any work


@pytest.mark.parametrize(
    ("messages", "options", "error", "text"),
    [
        ([], {}, MessageError, "messages is empty"),
        ([{"role": "robot", "content": "?"}], {}, MessageError, "role 'robot'"),
        (
            [{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}],
            {},
            ImageError,
            "not a picture",
        ),
        (ask("?", picture(0), picture(1)), {"limits": ImageLimits(max_images=1)}, ImageError, "limit is 1"),
        (ask("?", picture(0)), {"max_image_size": 0}, UsageError, "max_image_size is 0"),
        (ask("Why? " * CONTEXT), {}, CapacityError, f"context holds {CONTEXT}, one of them for the answer"),
    ],
)
@pytest.mark.parametrize("call", [Model.stream, Model.generate])
def test_errors_come_before_any_work(
    model: Model, call: object, messages: list, options: dict, error: type[PixedgeError], text: str
) -> None:
    """The call itself fails: not the first piece, and nothing has been encoded or prefilled by then."""
    model.engine.vision.asked.clear()
    with pytest.raises(error, match=text):
        call(model, messages, **options)
    assert model.engine.vision.asked == []
