"""What an answer can be held to, and what is refused before any work, by its name."""

import json
import time

import pytest

from pixedge.answer_format import MAX_CHARACTERS, AnswerFormat
from pixedge.errors import UsageError
from pixedge.json_schema import KEYWORDS, MAX_DEPTH
from pixedge.sampling import SamplingParams

# Keywords of the JSON Schema drafts, and of OpenAPI, that pixedge cannot hold an answer to.
REFUSED = {
    "not": {"type": "null"},
    "if": {},
    "then": {},
    "else": {},
    "contains": {},
    "minContains": 1,
    "maxContains": 1,
    "uniqueItems": True,
    "propertyNames": {"minLength": 2},
    "dependentRequired": {},
    "dependentSchemas": {},
    "dependencies": {},
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "$dynamicRef": "#a",
    "$dynamicAnchor": "a",
    "$recursiveRef": "#",
    "$recursiveAnchor": True,
    "$vocabulary": {},
    "divisibleBy": 2,
    "requird": ["a"],
    # would switch llguidance's own checks off
    "x-guidance": {"lenient": True},
}


@pytest.mark.parametrize("keyword", REFUSED)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"type": "array", "items": {"anyOf": [s]}}])
def test_a_keyword_that_cannot_be_kept_to_is_refused_by_its_name(keyword, wrap):
    with pytest.raises(UsageError) as refusal:
        AnswerFormat.from_schema(wrap({keyword: REFUSED[keyword]}))
    assert repr(keyword) in str(refusal.value)
    place = "#" if wrap({}) == {} else "#/items/anyOf/0"
    assert f"at {place}," in str(refusal.value)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "^(?!a).*$"}, "'pattern' '^(?!a).*$' at #/items"),
        ({"type": "string", "pattern": r"^(?!^[-+.]*$)x(?=y)$"}, "look-around"),
        ({"type": "string", "format": "iri"}, "'format' 'iri' at #/items"),
        ({"type": "string", "format": "json-pointer"}, "'format' 'json-pointer'"),
        ({"type": "integer", "exclusiveMinimum": "3"}, "'exclusiveMinimum' at #/items"),
    ],
)
def test_what_cannot_be_held_is_refused_by_its_field(schema, named):
    with pytest.raises(UsageError) as refusal:
        AnswerFormat.from_schema({"type": "array", "items": schema})
    assert named in str(refusal.value)


def test_letters_that_look_like_look_around():
    for pattern in (r"\(?=", r"[(?=]", r"\(\?!"):
        AnswerFormat.from_schema({"type": "string", "pattern": pattern})


def test_a_property_may_have_any_name():
    named = {name: {"type": "integer"} for name in [*REFUSED, *KEYWORDS]}
    AnswerFormat.from_schema({"type": "object", "properties": named, "required": list(REFUSED)})


def test_values_are_not_read_as_schemas():
    AnswerFormat.from_schema(
        {"enum": [{"not": 1}], "default": {"if": 2}, "examples": [{"uniqueItems": True}]}
    )


@pytest.mark.parametrize(
    "schema, named",
    [
        ({"type": "strin"}, "'type'"),
        ({"properties": {"a": {"type": "strin"}}}, "'type' at #/properties/a"),
        ({"items": "string"}, "'items'"),
        ({"minimum": "3"}, "'minimum'"),
        ({"exclusiveMinimum": "3"}, "'exclusiveMinimum'"),
        ({"required": "a"}, "'required'"),
        ({"type": "string", "format": "idn-email"}, "'format' 'idn-email'"),
        ({"format": "idn-email"}, "'format' 'idn-email'"),
        ({"type": "string", "pattern": "(?=a)b"}, "whose look-around"),
        ({"type": "string", "pattern": "("}, "'pattern': unclosed group"),
        ({"$ref": "http://localhost:1/schema"}, "'$ref' 'http://localhost:1/schema'"),
        ({"$ref": "file:///etc/passwd"}, "'$ref'"),
        ({"$ref": "#/$defs/none"}, "$defs/none"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "'oneOf'"),
        ({"minProperties": 2}, "'minProperties'"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
        ({"const": 1, "type": "string"}, "incompatible"),
        (False, "false"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a'"),
        ([], "type 'object', 'boolean'"),
        (3, "type 'object', 'boolean'"),
        ('{"type":', "line 1, column 9"),
        ("", "line 1, column 1"),
        ('{"minimum": NaN}', "NaN"),
        ({"minimum": float("inf")}, "JSON"),
        ({"enum": [object()]}, "JSON"),
        ({"n" * 9000: 1}, "the keyword 'nnn"),
        ({"properties": {"n" * 9000: {"type": 3}}}, "'type' at #/properties/nnn"),
        ({"enum": ["x" * MAX_CHARACTERS]}, f"{MAX_CHARACTERS:,}"),
    ],
)
def test_schemas_that_are_wrong_say_where(schema, named):
    with pytest.raises(UsageError) as refusal:
        AnswerFormat.from_schema(schema)
    sentence = str(refusal.value)
    assert named in sentence and "\n" not in sentence and len(sentence) < 400


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def test_depth_is_bounded_before_anything_recurses():
    AnswerFormat.from_schema(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 1000, 9000):
        with pytest.raises(UsageError):
            AnswerFormat.from_schema(nested(depth))


@pytest.mark.slow  # a time says something on an idle machine only
@pytest.mark.parametrize("width", [50, 500])
def test_wide_schemas_are_read_quickly(width):
    schema = {"anyOf": [{"properties": {f"p{i}_{j}": {} for j in range(width // 10)}} for i in range(width)]}
    start = time.perf_counter()
    try:
        AnswerFormat.from_schema(schema)
    except UsageError as refusal:
        assert "limit" in str(refusal)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "regex, named",
    [
        ("", "empty"),
        ("(", "unclosed group"),
        ("a{3,1}", "repetition"),
        (r"(a)\1", "backreferences"),
        (r"(?!a)b", "look-ahead"),
        (r"\bword", r"\bword"),
        ("a$b", "a$b"),
    ],
)
def test_regular_expressions_that_cannot_be_used(regex, named):
    with pytest.raises(UsageError, match="regular expression") as refusal:
        AnswerFormat.from_regex(regex)
    assert named in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "grammar, named",
    [
        ("", "Empty grammar"),
        ("strt: x", "no start rule"),
        ("start: foo", 'line 1, column 8: unknown name: "foo"'),
        ('start: "a', "lexer"),
        ('start: "a" <[3]>', "<[3]>"),
        ('a: "<b>" // <i>\nb: /<p>/\nstart: a b <INST>', "<INST> in line 3"),
        ("start: <[*]>", "<[*]>"),
        ("start: " + "(" * 20000 + '"a"' + ")" * 20000, "deep"),
        ('start: %json {"not": {}}', "not"),
    ],
)
def test_grammars_that_cannot_be_used(grammar, named):
    with pytest.raises(UsageError, match="grammar") as refusal:
        AnswerFormat.from_lark(grammar)
    assert named in str(refusal.value) and "\n" not in str(refusal.value)


def test_text_in_angle_brackets_is_no_token():
    AnswerFormat.from_lark('start: "<b>" /<[a-z]+>/ "\\"<" // <x>\n')


def test_one_of_three():
    assert AnswerFormat.choose() is None
    assert AnswerFormat.choose(schema=True).text == "{}"
    assert AnswerFormat.choose(schema={"type": "null"}).kind == "schema"
    assert AnswerFormat.choose(regex="a").kind == "regex"
    assert AnswerFormat.choose(grammar='start: "a"').kind == "lark"
    with pytest.raises(UsageError, match="schema and grammar"):
        AnswerFormat.choose(schema={}, grammar="x")
    with pytest.raises(UsageError, match="give a string"):
        AnswerFormat.choose(regex=3)


def test_formats_are_plain_values():
    schema = {"type": "object", "properties": {"é": {"type": "string"}}}
    one, other = (
        AnswerFormat.from_schema(schema),
        AnswerFormat.from_schema(json.dumps(schema, ensure_ascii=False)),
    )
    assert one == other and hash(one) == hash(other)
    assert SamplingParams(answer_format=one) == SamplingParams(answer_format=other)
