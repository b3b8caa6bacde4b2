"""The trained demo on a card beside the CPU in float32: the same answers, the same scores, flat memory.

Tolerances. Scores: the log-probability of each token of a prompt is within 0.05 of the CPU's in float16.
Answers: token for token the CPU's, but where the CPU itself finds both tokens within 0.15 of each other.
"""

import dataclasses
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "models" / "demo"))

import evaluate
import pixedge
from pixedge.engine import Engine
from pixedge.model import Model
from pixedge.sampling import Sampler, SamplingParams
from pixedge.tokenizer import Prompt
from tests.engines import Forced, again, check_books, finish_all, forced_logits
from tests.exported_demo import exported_demo

pytestmark = pytest.mark.gpu

SCORES = 0.05
TIE = 0.15
LOGITS = 0.15
"""Of logits of up to 30: what float16 rounds on the way through four layers."""
EIGHT_BITS = 1.0
SOAK = 200
QUESTIONS = evaluate.stored_questions()


def load_on_device(folder: Path) -> Model:
    """Load for the card; pictures are encoded on the CPU, so that only the decoder differs."""
    return pixedge.load(folder, device="cuda", vision_device="cpu", dtype="float16", vram_limit="8GiB")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return pixedge.load(exported_demo(tmp_path_factory.getbasetemp()), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_on_device(exported_demo(tmp_path_factory.getbasetemp()))


def prompts(model: Model, count: int) -> list[Prompt]:
    """Give held-out prompts evenly from all tasks."""
    step = max(1, len(QUESTIONS) // count)
    return [model.tokenizer.encode(question.messages) for question in QUESTIONS[::step][:count]]


def answer(model: Model, prompt: Prompt, **params: Any) -> list[Any]:
    sampler = Sampler(SamplingParams(max_tokens=48, **params), prompt.ids)
    return list(model.engine.tokens(model.engine.submit(prompt, sampler)))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def test_the_kernels_run_it(model: Model) -> None:
    from pixedge.gpu_runner import GpuRunner

    assert isinstance(model.engine.runner, GpuRunner)
    assert model.engine.kv_bits == 8


def test_held_out_answers(model: Model, exact: Model, figures: dict[str, Any]) -> None:
    same, differences = 0, []
    for prompt in prompts(model, 220):
        found = answer(model, prompt)
        expected = answer(exact, prompt, logprobs=5)
        pairs = list(zip(found, expected, strict=False))
        first = next((index for index, (one, other) in enumerate(pairs) if one.id != other.id), None)
        if first is None:
            assert len(found) == len(expected)
            same += 1
            continue
        one, other = pairs[first]
        likely = dict(other.top_logprobs)
        differences.append(likely[other.id] - likely.get(one.id, -torch.inf))
    figures["held_out"] = {"asked": same + len(differences), "same": same, "ties": differences}
    assert all(gap < TIE for gap in differences), differences
    assert same >= 0.9 * (same + len(differences))


def test_scores(model: Model, exact: Model, figures: dict[str, Any]) -> None:
    engine = again(model.engine, kv_bits=16, cache_tokens=2048)
    furthest = max(
        distance(engine.score(prompt), exact.engine.score(prompt)) for prompt in prompts(model, 12)
    )
    figures["scores_furthest"] = furthest
    assert furthest < SCORES


def test_logits(model: Model, exact: Model, figures: dict[str, Any]) -> None:
    engine = again(model.engine, kv_bits=16, cache_tokens=2048)
    furthest = 0.0
    for prompt in prompts(model, 6):
        words = [token.id for token in answer(exact, prompt)]
        found, expected = (forced_logits(each, prompt, words) for each in (engine, exact.engine))
        furthest = max(furthest, distance(found, expected))
    figures["logits_furthest"] = furthest
    assert furthest < LOGITS


def test_a_cache_of_8_bits(model: Model, exact: Model, figures: dict[str, Any]) -> None:
    furthest = max(
        distance(
            forced_logits(again(model.engine, cache_tokens=2048), prompt), forced_logits(exact.engine, prompt)
        )
        for prompt in prompts(model, 6)
    )
    figures["logits_furthest_8bit"] = furthest
    assert furthest < EIGHT_BITS


def test_graphs_change_nothing(model: Model) -> None:
    from pixedge.kernels.cuda import graph

    engine = model.engine
    decoder = dataclasses.replace(engine.decoder, capture=graph.direct)  # type: ignore[type-var]
    parts = (engine.config, decoder, engine.vision, engine.device, engine.dtype, engine.stop_ids)
    options = dataclasses.replace(engine.options, cache_tokens=2048)
    direct = Engine(*parts, options)
    for prompt in prompts(model, 3):
        words = [token.id for token in answer(model, prompt)]
        one, other = (
            forced_logits(each, prompt, words) for each in (again(engine, cache_tokens=2048), direct)
        )
        assert torch.equal(one, other)


def test_mixed_batches_say_what_each_says_alone(model: Model, figures: dict[str, Any]) -> None:
    asked = prompts(model, 11)
    words = [[token.id for token in answer(model, prompt)] for prompt in asked]
    engine = again(model.engine, cache_tokens=8192, shared_chunk=40)
    samplers = [Forced(said) for said in words]
    for prompt, sampler in zip(asked, samplers, strict=True):
        engine.submit(prompt, sampler)
        engine.step()
    finish_all(engine)
    check_books(engine)
    alone = again(model.engine, cache_tokens=8192)
    furthest = max(
        distance(sampler.logits, forced_logits(alone, prompt, sampler.said))
        for prompt, sampler in zip(asked, samplers, strict=True)
    )
    figures["batch_furthest"] = furthest
    assert furthest < EIGHT_BITS


def test_the_default_type_answers(tmp_path_factory: pytest.TempPathFactory, exact: Model) -> None:
    """In bfloat16, as `pixedge run` loads."""
    folder = exported_demo(tmp_path_factory.getbasetemp())
    model = pixedge.load(folder, device="cuda", vision_device="cpu", context=2048, vram_limit="8GiB")
    right = sum(
        evaluate.is_right(question.turn, evaluate.answer(model, question)) for question in QUESTIONS[::11]
    )
    assert right >= 0.8 * len(QUESTIONS[::11])


def soak(model: Model, requests: int, asked: Sequence[Prompt], seed: int = 0) -> None:
    """Ask in random mixtures: up to 16 at a time, of any length, some cancelled."""
    rng, engine = random.Random(seed), model.engine
    under_way = []
    for _ in range(requests):
        prompt = rng.choice(asked)
        cut = rng.randint(1, len(prompt.ids))
        if not prompt.images or cut < prompt.ids.index(model.config.vision.image_token_id):
            prompt = Prompt(prompt.ids[:cut], (), 0)
        params = SamplingParams(
            max_tokens=rng.randint(1, 40),
            temperature=rng.choice((0.0, 0.0, 1.0)),
            top_p=rng.choice((1.0, 0.9)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
            seed=rng.randint(0, 99),
        )
        under_way.append(engine.submit(prompt, Sampler(params, prompt.ids)))
        for _ in range(rng.randint(0, 3)):
            engine.step()
        if rng.random() < 0.1:
            engine.cancel(rng.choice(under_way))
    finish_all(engine)
    assert all(request.finished and request.error is None for request in under_way)


def test_nothing_is_allocated_after_the_warm_up(model: Model, figures: dict[str, Any]) -> None:
    """Any requests: torch asks the driver for no more, and the plan is kept to."""
    asked = prompts(model, 20)
    soak(model, 10, asked)
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    before = torch.cuda.memory_stats()["num_device_alloc"]
    torch.cuda.reset_peak_memory_stats()
    soak(model, SOAK, asked, seed=1)
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    assert torch.cuda.memory_reserved() == reserved
    assert model.plan is not None
    limit = model.plan.torch_limit
    figures["soak"] = {"requests": SOAK, "reserved": reserved, "torch_limit": limit, "plan": model.plan.total}
    assert limit is not None and torch.cuda.max_memory_reserved() <= limit
    check_books(model.engine)
