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
    "NaN": (b'{"model": "small", "messages": [{}], "temperature": NaN}', 400, "not JSON"),
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
    "a negative seed": (asking(seed=-2), "seed"),
    "a seed of 65 bits": (asking(seed=2**64), "seed"),
    "a hot temperature": (asking(temperature="hot"), "temperature is the string 'hot'"),
    "a negative temperature": (asking(temperature=-1), "temperature"),
    "top-p of 2": (asking(top_p=2), "top_p"),
    "50 log-probabilities": (asking(logprobs=True, top_logprobs=50), "top_logprobs"),
    "100,000 stop strings": (asking(stop=["x"] * 100_000), "stop has too many strings"),
    "a stop string that is a number": (asking(stop=[5]), "stop"),
    "log-probabilities of others alone": (asking(top_logprobs=2), "top_logprobs needs logprobs"),
    "two penalties for the same": (asking(repetition_penalty=1.2, repeat_penalty=1.1), "give one of them"),
    "a penalty under its other name": (asking(repeat_penalty=0), "repeat_penalty"),
    "reasoning": (asking(chat_template_kwargs={"enable_thinking": True}), "chat_template_kwargs is not"),
    "a prompt that is not ended": (asking(add_generation_prompt=False), "add_generation_prompt is not"),
    "a user message to be continued": (
        asking(continue_final_message=True),
        "the last message is not the assistant's",
    ),
    "true where 1 asks for nothing": (asking(best_of=True), "best_of is not supported"),
    "a sampler that pixedge lacks": (asking(mirostat=2), "mirostat is not supported"),
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
        asking(messages=[{"role": "user", "content": "x", "nmae": "me"}]),
        "the field 'nmae'",
    ),
    "a message without content": (asking(messages=[{"role": "user"}]), "content of type NoneType"),
    "base64 alone": (
        saying([{"type": "image_url", "image_url": {"url": data_url(png())[22:]}}]),
        "in front of base64 put data:image/png;base64,",
    ),
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


HUGE = b"1" + b"0" * 399
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "repeat_penalty", "presence_penalty")
NUMBERS += ("frequency_penalty", "top_k", "seed", "n", "max_tokens", "max_completion_tokens", "top_logprobs")
WRONG = [HUGE, b"-" + HUGE, HUGE + b".0", b"1e400", b"-1e400", b"NaN", b"Infinity", b"true"]


@pytest.mark.parametrize("number", WRONG, ids=lambda number: number[:6].decode())
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_beyond_all_floats(client, name, number):
    """An integer of 400 digits is JSON, and float() of it an OverflowError, which was a 500."""
    body = json.dumps(asking(logprobs=True)).encode()[:-1].replace(b', "max_tokens": 2', b"")
    error = error_of(post(client, body + b', "%s": %s}' % (name.encode(), number)), 400)
    assert name.rpartition("_")[2] in error or "not JSON" in error


@pytest.mark.parametrize("number", [HUGE, b"1e400", b"-" + HUGE])
def test_numbers_beyond_all_floats_in_a_schema(client, number):
    for keyword in ("minimum", "maxLength", "multipleOf", "minItems", "const", "default", "x-note"):
        body = json.dumps(asking(response_format={"type": "json_schema", "json_schema": {"schema": {}}}))
        body = body.replace('"schema": {}', f'"schema": {{"type": "number", "{keyword}": {number.decode()}}}')
        answer = post(client, body.encode())
        assert answer.status_code in (200, 400), (keyword, answer.text)
        assert answer.status_code == 200 or "schema" in error_of(answer, 400)


def test_minus_zero_is_zero(client):
    for name in ("temperature", "presence_penalty", "frequency_penalty", "min_p", "seed", "top_k"):
        assert post(client, asking(**{name: -0.0})).status_code == 200


STANDING = [
    {"add_generation_prompt": True}, {"cache_prompt": True}, {"chat_id": "a"}, {"id": "a"},
    {"session_id": "a"},
    {"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": {}}, {"keep_alive": "5m"},
    {"keep_alive": -1}, {"reasoning_effort": "low"}, {"repeat_penalty": 1.1}, {"seed": -1}, {"stop": ""},
    {"stop": []}, {"stop": [""]}, {"stop": None}, {"top_logprobs": 0}, {"n": None}, {"stream_options": None},
    {"stream_options": {"include_usage": False}}, {"stream_options": {}},
    {"response_format": {"type": "text"}},
    {"response_format": None}, {"tools": []}, {"tools": None}, {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"parallel_tool_calls": True}, {"logit_bias": {}}, {"logit_bias": None}, {"user": None}, {"user": "u"},
    {"modalities": ["text"]}, {"prediction": {"type": "content", "content": "x"}}, {"prediction": None},
    {"max_completion_tokens": None}, {"top_k": -1}, {"top_k": 0}, {"min_p": 0}, {"typical_p": 1},
    {"typical_p": 1.0}, {"mirostat": 0}, {"min_tokens": 0}, {"use_beam_search": False}, {"n_probs": 0},
    {"thinking": {"type": "disabled"}}, {"enable_thinking": False}, {"documents": []}, {"grammar": ""},
    {"extra_body": {}}, {"anything": None}, {"continue_final_message": False}, {"skip_special_tokens": True},
]  # fmt: skip


@pytest.mark.parametrize("fields", STANDING, ids=map(str, STANDING))
def test_fields_that_ask_for_nothing(client, fields):
    """What Open WebUI, SillyTavern, LM Studio, llama.cpp's and vLLM's clients send without a thought."""
    answer = post(client, asking(**fields))
    assert answer.status_code == 200, answer.text
    if "seed" not in fields and "repeat_penalty" not in fields:
        assert answer.json()["choices"] == post(client, asking()).json()["choices"]


def test_a_length_of_minus_one_is_the_default(client):
    for name in ("max_tokens", "max_completion_tokens"):
        fields = {"max_tokens": None, name: -1, "n": 2, "temperature": 1.0, "seed": -1}
        answer = post(client, asking(**fields)).json()
        assert answer["pixedge"]["seeds"][0] >= 0
        assert answer["usage"]["completion_tokens"] > 4  # not 2, as asking() wants


def test_the_other_name_of_a_penalty(client):
    text = "What? What? What?"
    asked = [
        {"repeat_penalty": 0.01},
        {"repetition_penalty": 0.01},
        {"repeat_penalty": 0.01, "repetition_penalty": 0.01},
    ]
    answers = [post(client, question(text, max_tokens=12, **fields)).json()["choices"] for fields in asked]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] != post(client, question(text, max_tokens=12)).json()["choices"]


def test_the_last_message_is_continued_in_either_way(client):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "It is"}]
    marked = [turns[0], {**turns[1], "prefix": True}]
    answers = [
        post(client, asking(messages=marked)),
        post(client, asking(messages=turns, continue_final_message=True, add_generation_prompt=False)),
    ]
    assert answers[0].json()["choices"] == answers[1].json()["choices"]
    assert "to have it continued" in error_of(post(client, asking(messages=turns)), 400)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(client):
    text = error_of(post(client, saying("word " * 5_000)), 400)
    counted = int(text.split("the prompt has ")[1].split(" ")[0].replace(",", ""))
    assert counted > 5_000
    assert "the context holds 600" in text


@pytest.mark.parametrize("factor", [5e-324, 1e-45, 1e38, 1.7976931348623157e308])
@pytest.mark.parametrize("temperature", [0, 5e-324, 1, 0.010])
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


BROWSERS = [
    "authorization,content-type",
    # what openai-js sends from a page; other clients, proxies and tracers
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout",
    "x-stainless-helper-method",
    "http-referer,x-title",
    "traceparent, Tracestate,openai-organization,OpenAI-Project",
]


@pytest.mark.parametrize("wanted", BROWSERS)
def test_the_preflight_of_a_page_that_was_let_in(tmp_path_factory, wanted):
    """Headers are not what keeps others out: any that a page of an allowed origin asks for may be sent."""
    page = "http://localhost:5173"
    with door(tmp_path_factory.getbasetemp(), origins=(page,), keys=Keys.of("sesame-1234")) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
        before = client.options(CHAT, headers={"origin": page, **asked})
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == page
        assert before.headers["access-control-allow-headers"] == wanted
        assert "POST" in before.headers["access-control-allow-methods"]
        assert int(before.headers["access-control-max-age"]) >= 600
        for origin in ("https://evil.test", f"{page}.evil.test", f"{page}1", "null"):
            refused = client.options(CHAT, headers={"origin": origin, **asked})
            assert refused.status_code == 403
            assert not [name for name in refused.headers if name.startswith("access-control")]
        # an error can be read by the page too, with the seconds to wait and nothing else
        sent = dict.fromkeys({each.strip() for each in wanted.split(",")} - {"content-type"}, "x")
        answers = [
            post(client, question(), **sent | {"authorization": f"Bearer {key}", "origin": page})
            for key in ("sesame-1234", "wrong")
        ]
        assert [answer.status_code for answer in answers] == [200, 401]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == page
            assert answer.headers["access-control-expose-headers"] == "retry-after"
            assert "access-control-allow-credentials" not in answer.headers


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
