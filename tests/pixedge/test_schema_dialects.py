"""Schemas as generators write them: every draft's words, and notes, against validators of those drafts.

Seen: what Zod 3 and 4 and OpenAPI 3.0 write for a tuple, for a positive number, for a record with named keys,
for an e-mail address and for a duration was refused, and so was a schema of 70 KB with 30 KB of descriptions.
"""

import random
import re

import jsonschema
import pytest

from pixedge.answer_format import AnswerFormat
from pixedge.errors import UsageError
from pixedge.format_limits import MAX_CHARACTERS, MAX_WITH_NOTES
from pixedge.schema_dialects import _PATTERNS, translate

PAIR = [{"type": "string"}, {"type": "number"}]
WRITTEN = [
    (jsonschema.Draft7Validator, {"type": "array", "items": PAIR}, [["a", 1], ["a"], [1], ["a", 1, 2], []]),
    (
        jsonschema.Draft7Validator,
        {"type": "array", "minItems": 1, "items": PAIR, "additionalItems": {"type": "null"}},
        [[], ["a"], ["a", 1, None], ["a", 1, 2], ["a", "b"]],
    ),
    (jsonschema.Draft7Validator, {"items": PAIR, "additionalItems": False}, [["a", 1], ["a", 1, 2]]),
    (jsonschema.Draft7Validator, {"items": {"type": "null"}, "additionalItems": False}, [[None], [1]]),
    (jsonschema.Draft4Validator, {"type": "integer", "minimum": 0, "exclusiveMinimum": True}, [0, 1, -1]),
    (jsonschema.Draft4Validator, {"type": "integer", "maximum": 9, "exclusiveMaximum": False}, [9, 10]),
    (jsonschema.Draft4Validator, {"type": "integer", "exclusiveMaximum": True}, [9, -9]),
    (
        jsonschema.Draft202012Validator,
        {
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["a", "b"], "title": "Key"},
            "additionalProperties": {"type": "integer"},
            "required": ["a"],
        },
        [{"a": 1}, {"a": 1, "b": 2}, {"a": 1, "c": 2}, {"b": 1}, {"a": "x"}],
    ),
    (
        jsonschema.Draft202012Validator,
        {
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/Colour"},
            "$defs": {"Colour": {"enum": ["red"], "type": "string", "title": "Colour"}},
        },
        [{"red": 1}, {"blue": 1}, {}],
    ),
    (
        jsonschema.Draft202012Validator,
        {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": {"type": "null"}},
        [{"a": None}, {"ab": None}, {"b": None}, {"a": 1}],
    ),
    (jsonschema.Draft7Validator, {"properties": {"a": {"not": {}}}}, [{}, {"a": 1}]),
]


@pytest.mark.parametrize(("validator", "schema", "values"), WRITTEN, ids=str)
def test_a_translated_schema_means_the_same(validator, schema, values):
    translated = translate(schema)
    for value in values:
        found = jsonschema.Draft202012Validator(translated).is_valid(value)
        assert found == validator(schema).is_valid(value), value
    AnswerFormat.from_schema(schema)


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    list(
        zip(
            _PATTERNS,
            [
                ["a", "b.", "@", "c-", ".", "+", "'", "_", "x@y.zz", "..", "A9"],
                ["P", "1Y", "2M", "3D", "T", "4H", "5M", "6S", "1.5S", "7W", "W", "1"],
            ],
            strict=True,
        )
    ),
)
def test_patterns_without_look_ahead_match_the_same_texts(pattern, pieces):
    chosen = random.Random(1)
    given, translated, matches = re.compile(pattern), re.compile(_PATTERNS[pattern]), 0
    for _ in range(20_000):
        text = "".join(chosen.choices(pieces, k=chosen.randint(1, 7)))
        text = f"P{text}" if "P" in pieces and chosen.random() < 0.5 else text
        matches += bool(given.match(text))
        assert bool(given.match(text)) == bool(translated.match(text)), text
    assert matches > 200
    AnswerFormat.from_schema({"type": "string", "pattern": pattern})


def test_references_follow_what_was_renamed():
    """As zod-to-json-schema writes a schema that is used twice: with a path to its first use."""
    pair = {"type": "array", "items": [{"type": "string"}], "additionalItems": {"type": "null"}}
    again = {
        "a": pair,
        "b": {"$ref": "#/properties/a/items/0"},
        "c": {"$ref": "#/properties/a/additionalItems"},
    }
    schema = {"type": "object", "properties": again}
    AnswerFormat.from_schema(schema)
    for value in ({"a": ["x"], "b": "y", "c": None}, {"b": 1}, {"c": 1}):
        found = jsonschema.Draft202012Validator(translate(schema)).is_valid(value)
        assert found == jsonschema.Draft7Validator(schema).is_valid(value), value
    named = {"type": "object", "propertyNames": {"enum": ["x"]}, "additionalProperties": {"type": "null"}}
    more = {"b": {"$ref": "#/properties/a/additionalProperties"}}
    with pytest.raises(UsageError, match="'#/properties/a/additionalProperties' beside 'propertyNames'"):
        AnswerFormat.from_schema({"type": "object", "properties": {"a": named} | more})


NOTES = ["x-order", "ui:widget", "meta:enum", "tsType", "defaultSnippets", "example", "title", "deprecated"]


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("value", ["yes", None, [1], {"$ref": "nowhere"}])
def test_notes_may_hold_anything(note, value):
    held = AnswerFormat.from_schema({"type": "object", "properties": {note: {"type": "string", note: value}}})
    assert held == AnswerFormat.from_schema({"type": "object", "properties": {note: {"type": "string"}}})


def test_notes_count_for_no_limit_but_one_of_their_own():
    def described(length: int) -> dict:
        return {"type": "object", "properties": {"a": {"type": "string", "description": "d" * length}}}

    assert len(AnswerFormat.from_schema(described(3 * MAX_CHARACTERS)).text) < 100
    with pytest.raises(UsageError, match=f"the limit is {MAX_WITH_NOTES:,}"):
        AnswerFormat.from_schema(described(MAX_WITH_NOTES))
    with pytest.raises(UsageError, match=f"notes left out, has .* and the limit is {MAX_CHARACTERS:,}"):
        AnswerFormat.from_schema({"enum": ["x" * MAX_CHARACTERS]})


def test_what_unfolds_to_too_much_is_refused():
    """Keys of an enum within keys of an enum: 100 to the power of 10 schemas, were they written out."""
    schema: dict = {"type": "string"}
    keys = [f"k{number}" for number in range(100)]
    for _ in range(10):
        schema = {"type": "object", "propertyNames": {"enum": keys}, "additionalProperties": schema}
    with pytest.raises(UsageError, match="more than 2,000 schemas"):
        AnswerFormat.from_schema(schema)
    # One list, used over and over: 40 MB of text, were it written out before anything is counted.
    uses = {f"p{at}": {"propertyNames": {"$ref": "#/$defs/Keys"}} for at in range(1_000)}
    keys = [f"k{number}" for number in range(1_900)]
    with pytest.raises(UsageError, match="more than 2,000 keys"):
        AnswerFormat.from_schema({"properties": uses, "$defs": {"Keys": {"enum": keys}}})
    deep: list | dict = {}
    for _ in range(400):
        deep = {"items": [deep]}
    with pytest.raises(UsageError, match="more than 64 schemas deep"):
        AnswerFormat.from_schema(deep)
