"""Thousands of broken pictures and requests, sent to a server process: no crash, no 500, no growing memory.

Some dozens of each kind in the usual tests; ten thousand pictures and as many requests in the slow ones.
"""

import functools
import io
import json
import math
import re
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pixedge.serve import chat_request
from pixedge.serve.openapi import describe
from tests.doors import data_url, error_of, png, question
from tests.serving import CHAT, Process
from tests.small_exports import small_export

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

NUMBERS = [80, pytest.param(10_000, marks=pytest.mark.slow)]

# What a server that has seen a few hundred requests may still grow by: buffers of threads that were not used
# before, and the allocator's own pieces. A leak of one small picture a request would be 100 MB in 10,000.
GROWTH = 64 << 20


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    options = ("--model", small_export(base), "--device", "cpu", "--max-tokens", 8, "--model-name", "small")
    with Process(base, *options, PIXEDGE_API_KEY="") as process:
        yield process
        assert process.end() == 0
        assert not any("Traceback" in line for line in process.said), process.said


class Sender:
    """Sends requests to a server process, counts what comes back, and watches the server's memory."""

    def __init__(self, process, number):
        self.process, self.number = process, number
        self.statuses = {}
        self.client = httpx.Client(base_url=process.url, timeout=60)
        self._sent, self._settled = 0, None

    def send(self, body):
        """Send a body; anything but an answer or a refusal of the sender's fault is an error."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = self.client.post(CHAT, content=content, headers={"content-type": "application/json"})
        self.count(response.status_code)
        assert response.status_code in (200, 400, 404), (response.text, content[:500])
        if response.status_code != 200:
            error_of(response, response.status_code)
        return response

    def count(self, status):
        """Count an answer; after a fifth of them, what the server holds is what it needs."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self._sent += 1
        if self._sent == max(20, self.number // 5):
            self._settled = self.memory()

    def memory(self):
        """Bytes that the server holds."""
        text = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) << 10

    def run(self, strategy, act):
        """Send as many as are wanted, then check that the server is as it was."""
        usual = self.number <= 1000

        @settings(
            max_examples=self.number,
            database=None,
            derandomize=usual,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def each(example):
            act(example)

        try:
            each()
            assert self._settled is not None, "too few were sent"
            growth = self.memory() - self._settled
            print(f"{self._sent} sent: {self.statuses}, {growth / 1e6:.1f} MB of growth")
            assert growth < GROWTH
            metrics = self.client.get("/metrics").text
            assert not re.search(r'status="5\d\d"\S* [1-9]', metrics)
            assert self.send(question()).status_code == 200
        finally:
            self.client.close()


# --- pictures ----------------------------------------------------------------------------------------------


@functools.cache
def seeds():
    """One small picture of each format, some with metadata."""
    gradient = Image.radial_gradient("L").resize((24, 18))
    colour = Image.merge(
        "RGB", (gradient, gradient.rotate(90), gradient.transpose(Image.Transpose.ROTATE_180))
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        ("JPEG", colour, {"exif": exif, "quality": 90}),
        ("JPEG", colour, {"progressive": True}),
        ("PNG", colour, {}),
        ("PNG", colour.quantize(16), {"transparency": 3}),
        ("PNG", gradient.convert("I;16"), {}),
        ("WebP", colour, {"lossless": True}),
        ("WebP", colour, {"quality": 50, "exif": exif}),
        ("GIF", colour.quantize(8), {}),
        ("TIFF", colour, {"compression": "tiff_lzw"}),
        ("TIFF", gradient, {}),
        ("BMP", colour, {}),
    ]
    pictures = []
    for kind, image, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        pictures.append(file.getvalue())
    return pictures


@st.composite
def broken_pictures(draw):
    data = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(1, 6))):
        # headers are at the front, so half of the changes are made there
        at = draw(st.integers(0, min(len(data), 64) if draw(st.booleans()) else len(data)))
        length = draw(st.integers(1, 8))
        what = draw(st.sampled_from(["change", "change", "change", "drop", "repeat", "insert", "cut", "mix"]))
        if what == "change":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif what == "drop":
            del data[at : at + length]
        elif what == "repeat":
            data[at:at] = data[at : at + 8 * length]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif what == "cut":
            del data[max(at, 16) :]
        else:
            other = draw(st.sampled_from(seeds()))
            data[at:] = other[at:]
    return bytes(data)


@pytest.mark.parametrize("number", NUMBERS)
def test_broken_pictures(target, number):
    sender = Sender(target, number)

    def send(data):
        response = sender.send(question("What?", data_url(data)))
        if response.status_code == 400:
            assert "picture of message 0, part 0" in response.json()["error"]["message"]

    sender.run(broken_pictures(), send)
    assert sender.statuses[400] > number // 20  # they are broken indeed
    assert sender.statuses[200] > number // 20  # and not all of them at the first look


# --- requests ----------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "\ud800", "\0", "[INST]", "</s>", "user", "image_url", "text", "a" * 3000, "file:x"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def whole_requests():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}
    formats = [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        {"type": "json_object"},
        {"type": "regex", "regex": "[a-c]{1,3}|d+"},
        {"type": "grammar", "grammar": 'start: "a" | "b" start'},
    ]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "Oh."},
    ]
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "stop": ["x", "yz"]}
    penalties = {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    return [
        question(),
        question("What?", data_url(png()), max_image_size=32),
        question(messages=turns, **sampling, **penalties),
        question(stream=True, stream_options={"include_usage": True}, n=2, logprobs=True, top_logprobs=3),
        *[question(response_format=each, max_completion_tokens=2) for each in formats],
    ]


def places(value, path=()):
    """Give the path to every value inside a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def broken_requests(draw):
    body = json.loads(json.dumps(draw(st.sampled_from(whole_requests()))))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(body))[1:]))
        holder = functools.reduce(lambda inner, key: inner[key], path[:-1], body)
        what = draw(st.sampled_from(["replace", "replace", "drop", "add", "wrap", "repeat"]))
        if what == "replace":
            holder[path[-1]] = draw(VALUES)
        elif what == "drop":
            del holder[path[-1]]
        elif what == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=10))] = draw(VALUES)
        elif what == "wrap":
            holder[path[-1]] = draw(st.sampled_from([list, lambda each: {"a": each}]))([holder[path[-1]]])
        elif what == "repeat" and isinstance(holder, list):
            holder.extend(holder * draw(st.integers(1, 20)))
        if not body or len(list(places(body))) > 2000:
            break
    data = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:  # and some are broken as text
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return data


@pytest.mark.parametrize("number", NUMBERS)
def test_broken_requests(target, number):
    sender = Sender(target, number)
    sender.run(broken_requests(), sender.send)
    assert min(sender.statuses[200], sender.statuses[400]) > number // 20


# --- the description of the API ----------------------------------------------------------------------------


def test_the_description_names_the_fields_that_are_read(target):
    described = describe("small", key_wanted=True)
    assert described["security"] == [{"key": []}]
    text = Path(chat_request.__file__).read_text(encoding="utf-8")
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    read = set(re.findall(r"fields\.(?:take|text|number|integer|flag|texts|inner)\(\"(\w+)\"", text))
    assert read == set(fields) - set(chat_request.IGNORED)
    assert set(chat_request.IGNORED) <= set(fields)
    served = httpx.get(f"{target.url}/openapi.json").json()
    assert served["components"]["schemas"] == describe("small", key_wanted=False)["components"]["schemas"]
    assert set(served["paths"]) == {
        CHAT,
        "/v1/models",
        "/v1/models/{name}",
        "/health",
        "/metrics",
        "/openapi.json",
        "/",
    }


def mended(body):
    """Mend what a schema cannot tell: who speaks when, the model's name, fields that need another one."""
    contents = [message["content"] for message in body["messages"] if message["role"] == "user"]
    content = next((each for each in contents if each), "What?")
    if isinstance(content, list):
        for part in content:
            if part["type"] == "image_url":
                part["image_url"] = data_url(png())
    body |= {"model": "small", "messages": [{"role": "user", "content": content}]}
    for name, other in (("top_logprobs", "logprobs"), ("stream_options", "stream")):
        if not body.get(other):
            body.pop(name, None)
    for name in ("max_completion_tokens", "repeat_penalty", "continue_final_message"):
        body.pop(name, None)
    body["max_tokens"] = 1 + (body.get("max_tokens") or 0) % 4
    if body.get("response_format", None) and not math.log2(1 + len(json.dumps(body["response_format"]))) < 9:
        del body["response_format"]
    return body


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("mended", 50),
        ("not as described", 50),
        pytest.param("mended", 2_000, marks=pytest.mark.slow),
        pytest.param("not as described", 2_000, marks=pytest.mark.slow),
        pytest.param("as described", 2_000, marks=pytest.mark.slow),
    ],
)
def test_requests_made_from_the_description(target, number, kind):
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    mode = GenerationMode.NEGATIVE if kind == "not as described" else GenerationMode.POSITIVE
    sender = Sender(target, number)

    def send(case):
        if kind == "mended":
            case.body = mended(case.body)
        response = case.call()
        sender.count(response.status_code)
        case.validate_response(response, checks=checks)
        if kind == "not as described":
            assert response.status_code in (400, 404, 415), case.body

    sender.run(schema[CHAT]["POST"].as_strategy(generation_mode=mode), send)
    if kind == "mended":
        assert sender.statuses[200] > number // 4


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/{name}", "/health", "/metrics", "/openapi.json", "/"]
)
def test_what_can_be_read_is_as_described(target, path):
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")

    @settings(max_examples=20, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(schema[path]["GET"].as_strategy())
    def each(case):
        case.call_and_validate()

    each()
