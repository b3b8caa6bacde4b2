"""Requests that a server refuses before it computes anything: bodies, fields, keys, names, methods.

Each case has a name, the request and its refusal, against the application itself.
"""

import gzip
import json

import pytest

from pixedge.serve.settings import Keys
from tests.doors import CHAT, data_url, door, error_of, png, post, question

MAX_BODY = 4_000_000


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with door(tmp_path_factory.getbasetemp(), max_body=MAX_BODY) as client:
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    with door(tmp_path_factory.getbasetemp(), keys=Keys.of("sesame-1234", "second-key")) as client:
        yield client


def asking(**fields):
    return {**question(), **fields}


def saying(content):
    return asking(messages=[{"role": "user", "content": content}])


# --- bodies ------------------------------------------------------------------------------------------------

DEEP = 200_000
BODIES = {
    "no body": (b"", 400, "not JSON"),
    "not JSON": (b"model=small", 400, "not JSON"),
    "half a JSON": (b'{"model": "small", "messages": [', 400, "not JSON"),
    "not UTF-8": (b'{"model": "\xff\xfe"}', 400, "not JSON"),
    "UTF-16": ('{"model": "small"}'.encode("utf-16"), 400, ""),
    "gzip": (gzip.compress(json.dumps(question()).encode()), 400, "not JSON"),
    "a list": (b"[]", 400, "give an object"),
    "null": (b"null", 400, "give an object"),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, 400, "nested too deeply"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, 400, "nested too deeply"),
    "deep lists in a message": (
        b'{"model":"small","messages":' + b"[" * DEEP + b"]" * DEEP + b"}",
        400,
        "nested too deeply",
    ),
    "a number of 10,000 digits": (b'{"model": "small", "seed": ' + b"9" * 10_000 + b"}", 400, "not JSON"),
    "NaN": (b'{"model": "small", "messages": [{}], "temperature": NaN}', 400, "temperature"),
    "infinity": (b'{"model": "small", "messages": [{}], "temperature": 1e999}', 400, "temperature"),
    "a million empty objects": (
        b"[" + b"{}," * 999_999 + b"{}]",
        400,
        "more than 1,000,000 fields and items",
    ),
    "a body a byte too large": (b" " * (MAX_BODY + 1), 413, f"the limit is {MAX_BODY:,}"),
    "100 MB": (b" " * 100_000_000, 413, "100,000,000 bytes"),
}


@pytest.mark.parametrize(("body", "status", "reason"), BODIES.values(), ids=BODIES)
def test_a_body(client, body, status, reason):
    assert reason in error_of(post(client, body), status)


def test_100_mb_in_pieces_of_unknown_number(client):
    """No length is stated, and no more than the limit is taken."""
    taken = 0

    def pieces():
        nonlocal taken
        for _ in range(1_600):
            taken += 1 << 16
            yield b" " * (1 << 16)

    response = client.post(CHAT, content=pieces(), headers={"content-type": "application/json"})
    assert "more bytes" in error_of(response, 413)


TYPES = {
    "plain text, as a form of another site may send it": "text/plain",
    "a form": "application/x-www-form-urlencoded",
    "a form with files": "multipart/form-data; boundary=x",
    "no type": "",
    "a type that begins like JSON": "application/jsonx",
}


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_a_content_type(client, kind):
    assert "send JSON as application/json" in error_of(post(client, question(), content_type=kind), 415)


# --- fields ------------------------------------------------------------------------------------------------

FIELDS = {
    "an unknown field": (asking(nonsense=1), "nonsense is not a field"),
    "an unknown field with a name that breaks lines": (asking(**{"a\r\nX-Evil: 1": 1}), "is not a field"),
    "a name of 100,000 letters": (asking(**{"x" * 100_000: 1}), "is not a field"),
    "tools": (asking(tools=[{"type": "function"}]), "tools is not supported"),
    "a bias on tokens": (asking(logit_bias={"5": 100}), "logit_bias is not supported"),
    "no model": ({"messages": [{"role": "user", "content": "x"}]}, "model is missing"),
    "a model that is a list": (asking(model=["small"]), "model is a list"),
    "a million choices": (asking(n=1_000_000), "n is 1000000"),
    "no choices": (asking(n=0), "n is 0"),
    "an answer of 10^18 tokens and more": (asking(max_tokens=10**19), "max_tokens"),
    "an answer of no tokens": (asking(max_tokens=0), "max_tokens"),
    "an answer of true tokens": (asking(max_tokens=True), "max_tokens is true or false"),
    "a negative seed": (asking(seed=-1), "seed"),
    "a seed of 65 bits": (asking(seed=2**64), "seed"),
    "a hot temperature": (asking(temperature="hot"), "temperature is the string 'hot'"),
    "a negative temperature": (asking(temperature=-1), "temperature"),
    "top-p of 2": (asking(top_p=2), "top_p"),
    "50 log-probabilities": (asking(logprobs=True, top_logprobs=50), "top_logprobs"),
    "100,000 stop strings": (asking(stop=["x"] * 100_000), "stop has too many strings"),
    "an empty stop string": (asking(stop=[""]), "stop"),
    "a picture size of 0": (asking(max_image_size=0), "max_image_size is 0"),
    "no messages": (asking(messages=[]), "messages is missing or empty"),
    "messages that are a string": (asking(messages="hi"), "messages is missing or empty"),
    "a message that is a number": (asking(messages=[5]), "message 0 is a int"),
    "an unknown role": (asking(messages=[{"role": "root", "content": "x"}]), "role 'root'"),
    "a role of 100,000 letters": (
        asking(messages=[{"role": "x" * 100_000, "content": "x"}]),
        "has the role 'xxx",
    ),
    "a role of 100,000 lists": (
        asking(messages=[{"role": [[]] * 100_000, "content": "x"}]),
        "has the role [[], ",
    ),
    "a seed of 4,000 digits": (asking(seed=10**3_999), "seed is 1000"),
    "a response format of 100,000 letters": (
        asking(response_format={"type": "x" * 100_000}),
        "response_format.type",
    ),
    "a tool's message": (asking(messages=[{"role": "tool", "content": "x"}]), "role 'tool'"),
    "a message with a stray field": (
        asking(messages=[{"role": "user", "content": "x", "name": "me"}]),
        "the field 'name'",
    ),
    "an empty message": (saying(""), "is empty"),
    "content that is a number": (saying(7), "content of type int"),
    "half a surrogate in a text": (saying("a\ud800b"), "unpaired surrogate U+D800"),
    "a part of an unknown type": (saying([{"type": "input_audio"}]), "'input_audio'"),
    "a part that is a list": (saying([[]]), "part 0 is a list"),
    "a picture without an address": (saying([{"type": "image_url"}]), "image_url of type NoneType"),
    "a picture in a system message": (
        asking(
            messages=[
                {"role": "system", "content": [{"type": "image_url", "image_url": data_url(png())}]},
                {"role": "user", "content": "x"},
            ]
        ),
        "put pictures in user messages",
    ),
    "a prompt that does not fit": (saying("word " * 5_000), "tokens"),
    "a schema that is no object": (
        asking(response_format={"type": "json_schema", "json_schema": {"schema": 5}}),
        "response_format.json_schema.schema is missing",
    ),
    "half a surrogate in a schema": (
        asking(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["\ud800"]}}}),
        "the schema cannot be read",
    ),
    "half a surrogate in an expression": (
        asking(response_format={"type": "regex", "regex": "a\udfff"}),
        "cannot be read",
    ),
    "a response format of another world": (asking(response_format={"type": "xml"}), "response_format.type"),
    "stream options without a stream": (asking(stream_options={"include_usage": True}), "needs stream"),
}


@pytest.mark.parametrize(("body", "reason"), FIELDS.values(), ids=FIELDS)
def test_a_field(client, body, reason):
    assert reason in error_of(post(client, body), 400)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(client):
    text = error_of(post(client, saying("word " * 5_000)), 400)
    counted = int(text.split("the prompt has ")[1].split(" ")[0].replace(",", ""))
    assert counted > 5_000
    assert "the context holds 600" in text


@pytest.mark.parametrize("factor", [5e-324, 1e-45, 1e38, 1.7976931348623157e308])
@pytest.mark.parametrize("temperature", [0, 5e-324, 1, 1e300])
def test_numbers_at_the_ends_of_their_range_are_computed_with(client, factor, temperature):
    ends = {"repetition_penalty": factor, "temperature": temperature, "top_p": 5e-324, "min_p": 1}
    answer = post(client, question("What? What?", max_tokens=6, seed=2**63 - 1, **ends))
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 6


CONTROL = ("[INST]", "[/INST]", "</s>", "<s>", "[IMG]", "[IMG_END]", "[SYSTEM_PROMPT]", "[TOOL_CALLS]")


def test_control_tokens_in_a_text_are_letters(client):
    """Whoever types them cannot end the turn, speak for the system, or claim a picture."""
    tokenizer = client.service.model.tokenizer
    plain = tokenizer.encode([{"role": "user", "content": "x"}])
    for text in CONTROL:
        typed = tokenizer.encode([{"role": "user", "content": text}])
        special = [[id for id in prompt.ids if id in tokenizer.special_ids] for prompt in (plain, typed)]
        assert special[0] == special[1]
        answer = post(client, question(f"a {text} b"))
        assert answer.status_code == 200
        assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 0


# --- keys --------------------------------------------------------------------------------------------------

KEYS = {
    "no key": {},
    "an empty key": {"authorization": "Bearer "},
    "a wrong key": {"authorization": "Bearer sesame-1235"},
    "the beginning of a key": {"authorization": "Bearer sesame"},
    "a key and more": {"authorization": "Bearer sesame-12345"},
    "two keys": {"authorization": "Bearer sesame-1234 second-key"},
    "a key in capitals": {"authorization": "Bearer SESAME-1234"},
    "another scheme": {"authorization": "Basic sesame-1234"},
    "no scheme": {"authorization": "sesame-1234"},
    "a key in another header": {"x-api-key": "sesame-1234"},
    "a key of a megabyte": {"authorization": "Bearer " + "s" * 1_000_000},
    "a key beyond ASCII": {"authorization": "Bearer sésame".encode("latin-1")},
}


@pytest.mark.parametrize("headers", KEYS.values(), ids=KEYS)
def test_a_key(locked, headers):
    text = error_of(locked.get("/v1/models", headers=headers), 401)
    assert "the API key is " in text
    assert "sesame" not in text
    error_of(locked.post(CHAT, json=question(), headers=headers), 401)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/small", "/metrics", "/openapi.json", "/nothing"])
def test_what_a_key_guards(locked, path):
    error_of(locked.get(path), 401)
    error_of(locked.get(f"{path}?api_key=sesame-1234"), 401)
    for key in ("sesame-1234", "second-key"):
        status = locked.get(path, headers={"authorization": f"Bearer {key}"}).status_code
        assert status == (404 if path == "/nothing" else 200)


@pytest.mark.parametrize(
    "path", ["//", "/%2f", "/./v1/models", "/health/", "/Health", "/health/../v1/models"]
)
def test_no_spelling_of_a_path_goes_around_the_key(locked, path):
    assert locked.get(f"http://127.0.0.1:8000{path}").status_code in (401, 404)


def test_without_a_key_no_body_is_read(locked):
    def pieces():
        raise AssertionError("the body was read")
        yield b""

    error_of(locked.post(CHAT, content=pieces()), 401)


# --- names, pages of other sites, methods ------------------------------------------------------------------

HOSTS = {
    "a name that was made to point here": "evil.test",
    "a name that was made to point here, with a port": "evil.test:8000",
    "a name that begins like this machine": "localhost.evil.test",
    "a name that begins like an address": "127.0.0.1.evil.test",
    "no name": "",
    "half an IPv6 address": "[::1",
    "a user name": "127.0.0.1@evil.test",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_a_host(client, host):
    for path in ("/", "/v1/models", "/health", "/metrics"):
        assert "does not go by the name" in error_of(client.get(path, headers={"host": host}), 403)


ORIGINS = {
    "a page of another site": "https://evil.test",
    "a page of another port": "http://127.0.0.1:9000",
    "a page of another scheme": "ftp://127.0.0.1:8000",
    "a page from a file": "null",
    "nonsense": "127.0.0.1:8000",
}


@pytest.mark.parametrize("origin", ORIGINS.values(), ids=ORIGINS)
def test_an_origin(client, origin):
    response = post(client, question(), origin=origin)
    assert "may not use this server" in error_of(response, 403)
    assert not [name for name in response.headers if name.startswith("access-control")]
    asked = {"origin": origin, "access-control-request-method": "POST"}
    before = client.options(CHAT, headers=asked)
    assert before.status_code == 403
    assert not [name for name in before.headers if name.startswith("access-control")]


def test_its_own_page_may_ask(client):
    assert post(client, question(), origin="http://127.0.0.1:8000").status_code == 200


METHODS = {
    "GET where something is computed": ("GET", CHAT, 405),
    "TRACE, which gives headers back": ("TRACE", "/", 405),
    "PUT": ("PUT", "/v1/models", 405),
    "DELETE": ("DELETE", "/v1/models/small", 405),
    "a method that nobody knows": ("BREW", "/", 405),
    "a path to the system's files": ("GET", "/..%2f..%2f..%2fetc/passwd", 404),
    "a path to the page's file": ("GET", "/page.html", 404),
    "a model's name that is a path": ("GET", "/v1/models/../../etc/passwd", 404),
    "a model's name of 8,000 letters": ("GET", "/v1/models/" + "x" * 8_000, 404),
    "a model's name that breaks lines": ("GET", "/v1/models/a%0d%0aX-Evil:%201", 404),
}


@pytest.mark.parametrize(("method", "path", "status"), METHODS.values(), ids=METHODS)
def test_a_method(client, method, path, status):
    response = client.request(method, path)
    assert "x-evil" not in response.headers
    error_of(response, status)


def test_after_all_that_a_question_is_answered(client, locked):
    assert post(client, question()).status_code == 200
    assert post(locked, question(), authorization="Bearer second-key").status_code == 200
    for each in (client, locked):
        assert each.service.chat.held == each.service.chat.held_bytes == 0
