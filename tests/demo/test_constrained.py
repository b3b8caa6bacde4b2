"""The demo, which can answer in JSON, held to schemas: also where it would rather say something else."""

import dataclasses
import json
import re

import jsonschema
import pytest

import pixedge
from pixedge import SamplingParams
from tests.exported_demo import DEMO, PICTURES, exported_demo

pytestmark = pytest.mark.usefixtures("one_thread")

HELD_OUT = DEMO / "held_out"
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"type": "string", "maxLength": 12},
        "colour": {"type": "string", "maxLength": 12},
    },
    "required": ["shape", "colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixedge.load(exported_demo(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def questions():
    """Give the held-out questions for JSON, each with the right answer."""
    found = []
    for line in (HELD_OUT / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["task"] != "json":
            continue
        for message in entry["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "image":
                    part["image"] = HELD_OUT / part["image"]
        found.append((entry["messages"], json.loads(entry["key"])))
    assert len(found) >= 5
    return found[:8]


def star(question: str) -> list[dict]:
    content = [{"type": "image", "image": PICTURES / "shapes.png"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def test_a_schema_costs_no_right_answer(model, questions):
    params = SamplingParams(max_tokens=60)
    free = [model.generate(messages, params).text for messages, _ in questions]
    held = [model.generate(messages, params, schema=SCHEMA).text for messages, _ in questions]
    right = [json.loads(text) == key for text, (_, key) in zip(held, questions, strict=True)]
    assert sum(right) >= sum(text == json.dumps(key) for text, (_, key) in zip(free, questions, strict=True))
    assert sum(right) >= 0.6 * len(right)


def test_at_any_temperature_the_answer_is_valid(model, questions):
    """Where the model alone would write JSON no more."""
    broken = 0
    for seed, (messages, _) in enumerate(questions):
        params = SamplingParams(max_tokens=200, temperature=3.0, seed=seed)
        answer = model.generate(messages, params, schema=SCHEMA)
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        try:
            alone = model.generate(messages, dataclasses.replace(params, max_tokens=40)).text
            jsonschema.validate(json.loads(alone), SCHEMA)
        except (ValueError, jsonschema.ValidationError):
            broken += 1
    assert broken > len(questions) / 2


def test_a_question_that_asks_for_no_json_is_answered_in_it(model):
    found = json.loads(model.generate(star("What colour is the star?"), schema=SCHEMA).text)
    assert found["colour"] == "yellow"


def test_one_of_a_few_words(model):
    regex = r"The star is (green|yellow|red)\."
    assert model.generate(star("What colour is the star?"), regex=regex).text == "The star is yellow."
    grammar = 'start: "It is " COLOUR "."\nCOLOUR: "red" | "yellow" | "green"'
    assert re.fullmatch(
        r"It is (red|yellow|green)\.", model.generate(star("What is it?"), grammar=grammar).text
    )
