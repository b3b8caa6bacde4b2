"""Answers held to a format: whatever the model would like to say, what it says matches."""

import datetime
import decimal
import json
import multiprocessing
import pathlib
import re
import resource
import threading
import time
from typing import Annotated, Literal

import jsonschema
import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pixedge.constraint
from pixedge.answer_format import AnswerFormat
from pixedge.errors import PixedgeError, UsageError
from pixedge.model import Model
from pixedge.sampling import Sampler, SamplingParams
from pixedge.tokenizer import Tokenizer
from tests.constrained_answers import DEMO_TEKKEN, EOS, REAL_TEKKEN, babble, read, tekkenizer, vocabulary
from tests.engines import check_books, finish_all
from tests.random_models import make_prompt, random_engine, random_text
from tests.random_schemas import schemas

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB = 3072
INVOICE = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "date": {"type": "string", "format": "date"},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 20}, "price": {"type": "number"}},
                "required": ["name", "price"],
                "additionalProperties": False,
            },
            "minItems": 1,
            "maxItems": 3,
        },
        "paid": {"type": "boolean"},
    },
    "required": ["number", "date", "items", "paid"],
    "additionalProperties": False,
}
# Sums of whole numbers, with brackets.
SUMS = """
start: sum
sum: term ("+" term)*
term: /[1-9][0-9]?/ | "(" sum ")"
"""


def check(schema: dict | bool, text: str) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


# Every answer matches


@settings(max_examples=120)
@given(schemas(), st.integers(0, 10**6))
def test_any_answer_to_any_schema_is_valid(schema, seed):
    try:
        text, ended = babble(AnswerFormat.from_schema(schema), seed)
    except UsageError:  # nothing can meet it, or it is refused by name
        return
    if ended:
        check(schema, text)


# Patterns as pydantic 2.4 to 2.13 write them for Decimal: plain, with decimal_places, max_digits, both.
DECIMALS = {
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": 40,
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d{0,2}0*$": 40,
    r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,5}|(?=[\d.]{1,6}0*$)\d*\.\d*0*$)": 5,
    r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)": 5,
    r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,0}|(?=[\d.]{1,4}0*$)\d{0,0}\.\d{0,3}0*$)": 3,
}


@pytest.mark.parametrize("pattern", DECIMALS)
def test_the_pattern_of_a_decimal_is_held_without_its_look_ahead(pattern):
    """Rust's regex has no look-ahead, Python's has, and Python's re is the judge."""
    schema = {"type": "string", "pattern": pattern, "maxLength": 9}
    answer_format = AnswerFormat.from_schema(schema)
    texts = set()
    for seed in range(12):
        text, ended = babble(answer_format, seed)
        if ended:
            check(schema, text)
            number = json.loads(text)
            assert len(decimal.Decimal(number).normalize().as_tuple().digits) <= DECIMALS[pattern]
            texts.add(number)
    assert len(texts) > 3
    for number in ("-0", "0.5", "+.25"):
        assert spells(answer_format, json.dumps(number)) or not re.search(pattern, number)
    for number in ("", "+", ".", "-.", "1e5", "abc", "1.2.3"):
        assert not spells(answer_format, json.dumps(number))


# Of a field that has both, as pydantic 2.13 writes it.
PRICE = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": list(DECIMALS)[3]}]}


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog", "hound"]
    name: str | None = pydantic.Field(None, max_length=5)
    friends: list["Pet"] = pydantic.Field(default=[], max_length=1)


class Pet(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    pet: Cat | Dog = pydantic.Field(discriminator="kind", title="A pet", examples=[1], deprecated=True)


class File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    path: pathlib.Path
    secret: pydantic.SecretStr = pydantic.Field(max_length=4)
    price: Annotated[decimal.Decimal, pydantic.WithJsonSchema(PRICE)]
    day: datetime.date
    data: bytes = pydantic.Field(max_length=4, json_schema_extra={"x-order": 3, "nullable": True, "xml": {}})
    other: float | None = pydantic.Field(None, alias="andere", json_schema_extra={"readOnly": True})


CLIENTS = {
    "a tagged union": (Pet.model_json_schema(), Pet),
    "formats of pydantic's own": (File.model_json_schema(), File),
    "formats of OpenAPI": (
        {
            "type": "object",
            "properties": {
                "id": {"type": "integer", "format": "int64", "example": 5, "minimum": -(2**53) + 1},
                "file": {"type": "string", "format": "file-path", "maxLength": 5, "nullable": True},
                "tags": {"type": "array", "uniqueItems": False, "maxItems": 2, "items": {"type": "number"}},
                "map": {
                    "type": "object",
                    "propertyNames": {"type": "string"},
                    "additionalProperties": {"type": "boolean"},
                    "maxProperties": 1,
                },
            },
            "required": ["id", "file", "tags", "map"],
            "additionalProperties": False,
            "discriminator": {"propertyName": "id"},
            "externalDocs": {"url": "https://example.com"},
        },
        None,
    ),
    "one of several types": (
        {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"type": "null"}],
         "$defs": {"a": {"type": "integer", "maximum": 9}, "b": {"enum": ["x", "y"]}}},
        None,
    ),
    "two tags": (
        {"oneOf": [
            {"type": "object", "properties": {"a": {"const": one}, "b": {"const": other}, "c": {}}}
            for one, other in (("x", "x"), ("x", "y"), ("y", "y"))
        ]},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIENTS)
def test_schemas_that_generators_write(name):
    """Annotations are let stand, and every answer is valid under the schema as it was given."""
    schema, model = CLIENTS[name]
    answer_format = AnswerFormat.from_schema(schema)
    texts = set()
    for seed in range(15):
        text, ended = babble(answer_format, seed)
        if ended:
            check(schema, text)
            texts.add(text)
            if model is not None:
                model.model_validate_json(text)
    assert len(texts) > 4


def test_schemas_that_do_not_exclude_each_other_are_refused():
    """Strings of both would be invalid under oneOf, so it must not become anyOf."""
    one, other = ({"type": "object", "properties": {"a": {"const": each}}} for each in "xy")
    both = [
        [{"$ref": "#/$defs/a"}, {"type": "string"}],
        [one | {"type": ["object", "null"]}, other | {"type": ["object", "null"]}],
        [one, {"type": "object", "properties": {"a": {"enum": ["x", "z"]}}}],
        [one, {"properties": {"a": {"const": "y"}}}],
        [one, True],
    ]
    for branches in both:
        with pytest.raises(UsageError, match="oneOf"):
            AnswerFormat.from_schema({"oneOf": branches, "$defs": {"a": {"type": "string"}}})


def test_the_random_schemas_are_rarely_refused():
    """The test above proves nothing about schemas that are refused, or of answers that never end."""
    ended = []

    @settings(max_examples=60, database=None, derandomize=True)
    @given(schemas(), st.integers(0, 10**6))
    def ask(schema, seed):
        try:
            ended.append(babble(AnswerFormat.from_schema(schema), seed)[1])
        except UsageError:
            ended.append(False)

    ask()
    assert sum(ended) > 0.6 * len(ended)


_ATOMS = st.sampled_from(["a", "B", "é", "😀", r"\d", "/", "\n", "[a-f]", "[^a]", r"\.", " ", ".", r"\x41"])
_REGEXES = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda each: f"({'|'.join(each)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(_REGEXES, st.integers(0, 10**6))
def test_any_answer_to_any_regular_expression_matches_all_of_it(regex, seed):
    text, ended = babble(AnswerFormat.from_regex(regex), seed)
    if ended:
        assert re.fullmatch(regex, text)


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_any_answer_to_a_grammar_follows_it(seed):
    text, ended = babble(AnswerFormat.from_lark(SUMS), seed, longest=60)
    if ended:
        assert re.fullmatch(r"[1-9()+0-9]+", text)
        assert isinstance(eval(text, {}), int)


@pytest.mark.parametrize("seed", range(4))
def test_with_the_vocabulary_of_131072(seed):
    """Pixtral's own: tokens of many letters, parts of characters, JSON's marks in one token with text."""
    text, ended = babble(AnswerFormat.from_schema(INVOICE), seed, file=REAL_TEKKEN, top_k=50)
    assert ended
    check(INVOICE, text)
    text, ended = babble(AnswerFormat.from_regex(r"[A-Z]{3}-\d{4}"), seed, file=REAL_TEKKEN)
    assert ended and re.fullmatch(r"[A-Z]{3}-\d{4}", text)
    text, _ = babble(AnswerFormat.json_object(), seed, file=REAL_TEKKEN)
    assert text.startswith("{")


def test_an_empty_answer_where_the_format_allows_one():
    assert babble(AnswerFormat.from_lark("start: "), 1) == ("", True)
    assert babble(AnswerFormat.from_regex("a?"), 5)[0] in ("", "a")


# What cannot come


def test_control_tokens_never_come():
    """However much the model would like one; the stop id comes only where the answer may end."""
    answer_format = AnswerFormat.from_lark("start: /(?s).*/")
    sampler = Sampler(SamplingParams(answer_format=answer_format), (), vocabulary().constraint(answer_format))
    logits = torch.zeros(VOCAB)
    logits[:1000] = 1e4
    logits[EOS] = -1e4
    for _ in range(30):
        assert sampler.sample(logits).id >= 1000
    allowed = sampler.constraint.allowed()
    assert allowed[0] == EOS and allowed[1] >= 1000


def test_a_key_cannot_come_twice_in_another_spelling():
    r"""With {"a": 1, "\u0061": "x"} most parsers would see the second, which keeps to no rule for "a"."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b/c": {"type": "integer"}}}
    for text in [r'{"a":1,"\u0061', r'{"a":1,"b\/', '{"a":1,"a"']:
        assert not spells(AnswerFormat.from_schema(schema), text)
    assert spells(AnswerFormat.from_schema(schema), '{"a":1,"aa":"x","b":"\\n"}')


def test_white_space_ends():
    answer_format = AnswerFormat.json_object()
    assert spells(answer_format, '{\n    "a": [\n        1,\n        2\n    ]\n}')
    assert not spells(answer_format, "{\n\n")
    assert not spells(answer_format, "{  ")


def spells(answer_format: AnswerFormat, text: str) -> bool:
    """Say whether an answer can go on like this, in Tekken's single-byte tokens."""
    constraint = vocabulary().constraint(answer_format)
    for byte in text.encode():
        if 1000 + byte not in constraint.allowed():
            return False
        constraint.advance(1000 + byte)
    constraint.allowed()
    return True


# Beside the other options


def test_the_rest_of_sampling_works_on_what_is_allowed():
    answer_format = AnswerFormat.from_regex("[ab]~")  # no token is both at once
    a, b = 1000 + ord("a"), 1000 + ord("b")
    logits = torch.full((VOCAB,), 5.0)
    logits[a], logits[b] = 1.0, 2.0

    def first(**params):
        values = SamplingParams(answer_format=answer_format, **params)
        return Sampler(values, (b,), vocabulary().constraint(answer_format)).sample(logits)

    total = torch.logsumexp(logits[[a, b]], 0).item()
    found = first(logprobs=20)
    assert found.logprob == pytest.approx(logits[b].item() - total, abs=1e-5)
    assert [id for id, _ in found.top_logprobs] == [b, a]
    assert sum(np.exp(logprob) for _, logprob in found.top_logprobs) == pytest.approx(1, abs=1e-5)
    assert first().id == b
    assert first(repetition_penalty=3.0).id == a  # b stands in the prompt
    assert {first(temperature=1.0, top_k=1, seed=s).id for s in range(9)} == {b}
    assert {first(temperature=1.0, min_p=0.1, top_p=0.999, seed=s).id for s in range(60)} == {a, b}


def test_same_seed_same_answer():
    answer_format = AnswerFormat.from_schema(INVOICE)
    assert babble(answer_format, 3) == babble(answer_format, 3) != babble(answer_format, 4)


@pytest.fixture(scope="module")
def model() -> Model:
    engine = random_engine(12, stop_ids=frozenset({EOS}), vocab_size=VOCAB, context=400)
    return Model(engine.config, engine, Tokenizer(DEMO_TEKKEN, engine.config.vision, VOCAB), DEMO_TEKKEN, 0.0)


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


FORMATS = [
    AnswerFormat.from_regex("(yes|no|perhaps)( indeed)?"),
    AnswerFormat.from_schema({"type": "array", "items": {"enum": [1, 2, "é"]}, "minItems": 3, "maxItems": 3}),
    AnswerFormat.from_lark('start: "<" /[a-z]{1,5}/ ">"'),
    AnswerFormat.from_schema({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                              "additionalProperties": False}),
    None,
]  # fmt: skip


def test_each_request_of_a_batch_has_its_own(model):
    engine = model.engine
    prompts = [make_prompt(engine.config.vision, random_text(at, 20)) for at in range(len(FORMATS))]

    def sampler(at):
        params = SamplingParams(temperature=1.0, seed=at, max_tokens=40, answer_format=FORMATS[at])
        return Sampler(params, prompts[at].ids, model.tokenizer.constraint(FORMATS[at]))

    def said(request):
        return [token.id for token in request.ready]

    alone = []
    for at in range(len(FORMATS)):
        alone.append(engine.submit(prompts[at], sampler(at)))
        finish_all(engine)
    together = [engine.submit(prompts[at], sampler(at)) for at in range(len(FORMATS))]
    finish_all(engine)
    check_books(engine)
    assert [said(request) for request in together] == [said(request) for request in alone]
    texts = [read([id for id in said(request) if id != EOS]) for request in together[:-1]]
    assert re.fullmatch(FORMATS[0].text, texts[0])
    check(json.loads(FORMATS[1].text), texts[1])
    assert re.fullmatch("<[a-z]{1,5}>", texts[2])
    check(json.loads(FORMATS[3].text), texts[3])


def test_a_format_that_becomes_too_much_ends_its_own_request_alone(model):
    engine = model.engine
    large = AnswerFormat.from_regex(r"(\p{L}{1,499}\w{1,499}){1,100}")
    bad = Sampler(SamplingParams(max_tokens=30, answer_format=large), (), model.tokenizer.constraint(large))
    prompt = make_prompt(engine.config.vision, random_text(1, 20))
    failing = engine.submit(prompt, bad)
    other = engine.submit(prompt, Sampler(SamplingParams(max_tokens=30)))
    finish_all(engine)
    assert len(other.ready) > 0 and other.error is None
    assert isinstance(failing.error, PixedgeError) and "regular expression" in str(failing.error)
    check_books(engine)


def test_generate_and_stream_take_a_format(model):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=60)
    answer = model.generate(ask("how many?"), params, schema=schema)
    assert answer.finish_reason == "stop" and json.loads(answer.text)["n"] in range(10)
    assert "".join(model.stream(ask("how many?"), params, schema=json.dumps(schema))) == answer.text
    assert re.fullmatch("[xyz]{3}", model.generate(ask("abc"), regex="[xyz]{3}").text)
    assert model.generate(ask("abc"), grammar='start: "only " "this"').text == "only this"
    cut = model.generate(ask("abc"), SamplingParams(max_tokens=2), regex="[xyz]{300}")
    assert cut.finish_reason == "length" and cut.completion_tokens == 2


def test_a_stop_string_ends_the_answer_in_the_middle(model):
    answer = model.generate(ask("abc"), SamplingParams(stop=("is",)), grammar='start: "only this"')
    assert (answer.text, answer.finish_reason) == ("only th", "stop")


def test_a_bad_format_is_found_before_the_model_runs(model, monkeypatch):
    monkeypatch.setattr(model.engine, "step", lambda: pytest.fail("the model ran"))
    for bad in [dict(schema={"not": {}}), dict(regex="("), dict(grammar="x"), dict(schema={"$ref": "#"})]:
        with pytest.raises(UsageError):
            model.stream(ask("abc"), **bad)


# What it takes


def test_the_vocabulary_is_built_once_and_only_when_asked_for(monkeypatch):
    built = []
    tokens = pixedge.constraint._Tokens
    monkeypatch.setattr(pixedge.constraint, "_Tokens", lambda tekken: built.append(1) or tokens(tekken))
    fresh = pixedge.constraint.Vocabulary(tekkenizer())
    assert not built
    for _ in range(3):
        fresh.constraint(AnswerFormat.json_object())
    assert len(built) == 1


def test_what_may_come_next_is_worked_out_by_another_thread():
    """Choosing a token does not wait for it."""
    answer_format = AnswerFormat.json_object()
    constraint = vocabulary().constraint(answer_format)

    go_on, over = threading.Event(), threading.Event()

    class Slow:
        def consume_token(self, token):
            assert go_on.wait(60)
            over.set()

        def is_error(self):
            return False

        def compute_bitmask(self):
            return bytes([255] * (VOCAB // 8))

    constraint._matcher = Slow()
    constraint.advance(1000 + ord("{"))
    assert not over.is_set()
    go_on.set()
    assert len(constraint.allowed()) == VOCAB - 1000 + 1
    assert over.is_set()


def _in_a_child(queue) -> None:
    queue.put(babble(AnswerFormat.from_regex("ab*c"), 1))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_after_a_fork_there_are_threads_again():
    expected = babble(AnswerFormat.from_regex("ab*c"), 1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()


HOSTILE = {
    "nested repeats": {"regex": "(a{1000}){1000}"},
    "long repeat": {"regex": "a{1,100000}"},
    "letters": {"regex": r"(\p{L}{1,500}\w{1,500}){1,100}"},
    "states that double": {"regex": "(.*a.{30}){3}"},
    "endless reference": {"schema": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
    "endless object": {"schema": {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}},
    "many values": {"schema": {"enum": [f"v{at}" for at in range(8000)]}},
    "many alternatives": {
        "schema": {"anyOf": [{"properties": {f"p{i}": {"type": "null"}}} for i in range(999)]}
    },
    "all of any": {
        "schema": {
            "allOf": [{"anyOf": [{"properties": {f"p{i}_{j}": {}}} for j in range(6)]} for i in range(6)]
        }
    },
    "long strings": {"schema": {"type": "string", "minLength": 10**6, "maxLength": 10**9}},
    "fine steps": {"schema": {"type": "number", "multipleOf": 1e-9, "minimum": -1e15, "maximum": 1e15}},
    "ambiguous": {"grammar": 'start: s\ns: s s | "a" | "a" s |'},
    "many rules": {
        "grammar": "start: r1"
        + "".join(f'\nr{i}: "x{i}" r{i * 7 % 1500} | r{i * 3 % 1500} |' for i in range(1500))
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_formats_of_strangers_take_bounded_time_and_memory(name):
    """Refused or answered, but never a process that stands still or grows for ever."""
    vocabulary()._tokenizer()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        babble(AnswerFormat.choose(**HOSTILE[name]), 1, longest=40)
    except PixedgeError as refusal:
        assert "\n" not in str(refusal) and len(str(refusal)) < 300
    assert time.process_time() - start < 3  # of the processors, however busy they are
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000  # kB
