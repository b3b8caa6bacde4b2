"""Trials on the demo: they compute what they say they time, and leave the engine as it was."""

import dataclasses

import pytest
import torch

import pixedge
from pixedge.errors import CapacityError
from pixedge.kernels.attention import PAGE
from pixedge.profile.bench import Bench, Job
from pixedge.profile.drawn_picture import drawn_jpeg
from pixedge.profile.questions import Asking, ask
from pixedge.profile.rows import Skipped
from pixedge.profile.settings import Settings
from pixedge.profile.spans import Recorder
from pixedge.profile.subject import Subject
from pixedge.profile.text_rows import decode_jobs, prefill_jobs
from pixedge.profile.trials import Trials, endless
from tests.engines import check_books
from tests.exported_demo import exported_demo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixedge.load(exported_demo(tmp_path_factory.getbasetemp()), device="cpu", context=1024)


@pytest.fixture
def trials(model):
    return Trials(model)


def counted(engine, monkeypatch):
    """Count the tokens of each step that the decoder runs, prompts' and answers' apart."""
    steps = []
    outcomes = engine.runner.outcomes

    def counting(parts):
        steps.append((parts[0][0].prefilling, sum(count for _, count in parts)))
        return outcomes(parts)

    monkeypatch.setattr(engine.runner, "outcomes", counting)
    return steps


def test_a_prompt_is_computed_whole_each_time(trials, monkeypatch):
    steps = counted(trials.engine, monkeypatch)
    for _ in range(3):
        assert trials.prefill(200) > 0
    assert steps == [(True, 200)] * 3


def test_an_answer_takes_a_step_a_token_behind_what_is_known(trials, monkeypatch):
    prompts = trials.texts(320, 1)
    trials.decode(prompts, 1)
    steps = counted(trials.engine, monkeypatch)
    assert trials.decode(prompts, 12) > 0
    prompt = [count for prefilling, count in steps if prefilling]
    assert sum(prompt) <= PAGE  # the rest was known
    assert [count for prefilling, count in steps if not prefilling] == [1] * 12


def test_many_answers_go_in_the_same_steps(trials, monkeypatch):
    prompts = trials.texts(0, 5)
    assert all(len(prompt.ids) == 1 for prompt in prompts)
    trials.decode(prompts, 1)
    steps = counted(trials.engine, monkeypatch)
    trials.decode(prompts, 9)
    assert [count for prefilling, count in steps if not prefilling][-9:] == [5] * 9


@pytest.mark.parametrize("depth", [0, 15, 200, 700])
@pytest.mark.parametrize("batch", [1, 3, 16, 17])
def test_what_is_said_to_fit_runs_to_its_end(trials, depth, batch):
    longest = next((tokens for tokens in range(48, 0, -1) if trials.fits(depth, batch, tokens)), None)
    if batch == 17 or depth * batch > 1024:
        assert longest is None
    if longest is not None:
        trials.decode(trials.texts(depth, batch), longest)
    check_books(trials.engine)


def test_no_token_ends_an_answer_and_later_one_does_again(trials, monkeypatch):
    engine = trials.engine
    before = engine.stop_ids
    assert before
    everything = frozenset(range(trials.model.tokenizer.vocab_size))
    monkeypatch.setattr(engine, "stop_ids", everything)
    trials.decode(trials.texts(0, 2), 8)
    assert engine.stop_ids == everything
    with pytest.raises(RuntimeError), endless(engine):
        assert engine.stop_ids == frozenset()
        raise RuntimeError
    assert engine.stop_ids == everything


def test_an_error_in_a_step_is_raised_and_frees_everything(trials, monkeypatch):
    def broken(parts):
        raise CapacityError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(trials.engine.runner, "outcomes", broken)
        for run in (lambda: trials.prefill(40), lambda: trials.decode(trials.texts(9, 2), 3)):
            with pytest.raises(CapacityError, match="no more"):
                run()
    check_books(trials.engine)
    assert trials.prefill(40) > 0


def test_what_does_not_grow_with_the_layers_is_a_part_of_a_step(trials):
    step = min(trials.decode(trials.texts(0, 1), 1) for _ in range(5))
    assert 0 < min(trials.rest(1) for _ in range(5)) < step


def test_changed_pictures_are_new_and_nearly_the_same(trials):
    recorder = Recorder()
    asking = Asking((drawn_jpeg(64, 48),), 3)
    first, second = ask(trials, asking, recorder, requests=2, concurrency=1)
    one, other = first.request.prompt, second.request.prompt
    assert one.ids == other.ids and first.request.watch.encode > 0 < second.request.watch.encode
    assert second.request.cached < PAGE
    difference = torch.from_numpy(one.images[0] - other.images[0])
    assert difference.abs().max() < 0.01 and difference.count_nonzero() == 1


@pytest.mark.parametrize(("requests", "concurrency"), [(1, 1), (3, 2), (2, 5)])
def test_questions_are_answered_whole_and_so_many_at_a_time(trials, monkeypatch, requests, concurrency):
    most = 0
    step = trials.engine.step

    def stepping():
        nonlocal most
        most = max(most, len(trials.engine._active) + len(trials.engine._waiting))
        step()

    monkeypatch.setattr(trials.engine, "step", stepping)
    asked = ask(trials, Asking((drawn_jpeg(40, 40),), 5), Recorder(), requests, concurrency)
    assert len(asked) == requests and most == min(requests, concurrency)
    for one in asked:
        assert len(one.times) == 5 and one.times == sorted(one.times) and one.arrived < one.times[0]
        assert one.end_to_end == pytest.approx(one.first_token + sum(one.between))
    check_books(trials.engine)


def test_a_question_that_fails_frees_the_others(trials, monkeypatch):
    def broken(picture):
        raise CapacityError("no memory for the picture")

    monkeypatch.setattr(trials.engine.runner.pictures, "encode", broken)
    with pytest.raises(CapacityError, match="no memory for the picture"):
        ask(trials, Asking((drawn_jpeg(56, 40),), 5), Recorder(), 3, 3)  # a picture of no other test
    check_books(trials.engine)
    assert trials.engine.stop_ids


def test_fewer_requests_than_answers_at_a_time(model):
    engine = model.engine
    options = dataclasses.replace(engine.options, max_requests=2)
    before, engine.options = engine.options, options
    try:
        assert not Trials(model).fits(0, 3, 4) and Trials(model).fits(0, 2, 4)
    finally:
        engine.options = before


def test_rows_for_which_there_is_no_room_are_named_with_the_reason(model):
    settings = Settings(prompts=(64, 1024), depths=(0, 2000), batches=(3, 17))
    bench = Bench(Subject("demo", model, model.config), settings, Trials(model))
    found = [*prefill_jobs(bench), *decode_jobs(bench)]
    assert [each.name for each in found if isinstance(each, Job)] == ["pp64", "tg128", "tg32 b3"]
    assert [each for each in found if isinstance(each, Skipped)] == [
        Skipped("pp1024", "1,025 tokens, and there is room for 1,024"),
        Skipped("tg128 @ d2000", "2,128 tokens, and there is room for 1,024"),
        Skipped("tg32 b17", "17 answers, and 16 can be under way at a time"),
    ]
