"""The real openai package against a real server process with the demo."""

import base64
import json

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.doors import data_url as drawn
from tests.doors import png
from tests.exported_demo import PICTURES, exported_demo
from tests.serving import Process

KEY = "a-key-for-the-tests-of-pixedge"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    with Process(
        base, "--model", exported_demo(base), "--model-name", "star", PIXEDGE_API_KEY=KEY
    ) as process:
        yield process


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A server whose answers do not depend on what else is computed: without AMX that takes float32."""
    base = tmp_path_factory.getbasetemp()
    arguments = ("--model", exported_demo(base), "--model-name", "star", "--dtype", "float32")
    with (
        Process(base, *arguments, PIXEDGE_API_KEY=KEY) as process,
        openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


def data_url(name):
    return "data:image/png;base64," + base64.b64encode((PICTURES / name).read_bytes()).decode()


def about(question, *names):
    """Give messages as OpenAI documents them: text first, pictures behind it."""
    pictures = [{"type": "image_url", "image_url": {"url": data_url(n), "detail": "high"}} for n in names]
    return [{"role": "user", "content": [{"type": "text", "text": question}, *pictures]}]


STAR = about("What colour is the star?", "shapes.png")


def test_an_answer_about_a_picture(client):
    answer = client.chat.completions.create(model="star", messages=STAR, temperature=0)
    (choice,) = answer.choices
    assert choice.message.content == "The star is yellow." and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "star"
    usage = answer.usage
    assert usage.prompt_tokens == 109 and usage.completion_tokens == 9 and usage.total_tokens == 118
    assert usage.prompt_tokens_details.image_tokens == 88


def test_a_stream_is_the_same_answer(client):
    whole = client.chat.completions.create(model="star", messages=STAR)
    chunks = list(
        client.chat.completions.create(
            model="star", messages=STAR, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    counts = chunks[-1].usage
    assert counts.completion_tokens == whole.usage.completion_tokens
    assert counts.prompt_tokens_details.cached_tokens == 96  # all of its pages but the last
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert set(chunks[-1].pixedge["seconds"]) == {
        "image_decode", "encode", "prefill", "first_token", "decode",
    }  # fmt: skip


def test_a_stream_without_usage(client):
    chunks = list(client.chat.completions.create(model="star", messages=STAR, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_a_second_turn(client):
    first = client.chat.completions.create(model="star", messages=STAR).choices[0].message
    later = [*STAR, first, {"role": "user", "content": "And the circle?"}]
    answer = client.chat.completions.create(model="star", messages=later)
    assert answer.usage.prompt_tokens_details.cached_tokens >= 112
    assert answer.choices[0].message.content == "The circle is red."


def test_two_pictures_in_their_order(client):
    question = "Which picture has the red square?"
    answers = [
        client.chat.completions.create(model="star", messages=about(question, *names))
        for names in (("first.png", "second.png"), ("second.png", "first.png"))
    ]
    words = [answer.choices[0].message.content for answer in answers]
    assert words == ["The second picture.", "The first picture."]
    assert answers[0].usage.prompt_tokens_details.image_tokens == 2 * 42  # 7 by 6 patches each


@pytest.mark.parametrize("role", ["system", "developer"])
def test_an_instruction_ahead(client, role):
    """It is a part of the prompt, whichever of its two names it goes by."""
    messages = [{"role": role, "content": "Look twice."}, *STAR]
    answer = client.chat.completions.create(model="star", messages=messages, max_tokens=4)
    assert answer.usage.prompt_tokens > 109 and answer.usage.prompt_tokens_details.image_tokens == 88


def test_choices_and_seeds(exact):
    draw = {"model": "star", "messages": STAR, "temperature": 3.0, "max_tokens": 12, "seed": 7}
    three = exact.chat.completions.create(**draw, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert three.pixedge["seeds"] == [7, 8, 9]
    assert three.usage.prompt_tokens == 109 and 3 < three.usage.completion_tokens <= 36
    for seed, text in zip((7, 8, 9), texts, strict=True):
        alone = exact.chat.completions.create(**{**draw, "seed": seed})
        assert alone.choices[0].message.content == text
    streamed = ["", "", ""]
    ends = []
    for chunk in exact.chat.completions.create(**draw, n=3, stream=True):
        (choice,) = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert streamed == texts and sorted(ends) == [0, 1, 2]


def test_each_choice_ends_for_its_own_reason(exact):
    """Some choices stop by themselves and some are cut: each as it does alone, and the usage is their sum."""
    asked = {"model": "star", "messages": STAR, "temperature": 2.5, "max_tokens": 9, "seed": 0}
    together = exact.chat.completions.create(**asked, n=8)
    assert together.pixedge["seeds"] == list(range(8))
    alone = [exact.chat.completions.create(**{**asked, "seed": seed}) for seed in range(8)]
    reasons = [answer.choices[0].finish_reason for answer in alone]
    assert set(reasons) == {"stop", "length"} and reasons != [reasons[0]] * 8
    assert [choice.finish_reason for choice in together.choices] == reasons
    counts = [answer.usage.completion_tokens for answer in alone]
    assert together.usage.completion_tokens == sum(counts) and len(set(counts)) > 1
    assert together.usage.total_tokens == together.usage.prompt_tokens + sum(counts)
    ends = {}
    options = {"include_usage": True}
    for chunk in exact.chat.completions.create(**asked, n=8, stream=True, stream_options=options):
        ends |= {choice.index: choice.finish_reason for choice in chunk.choices if choice.finish_reason}
        usage = chunk.usage
    assert [ends[index] for index in range(8)] == reasons
    assert usage.completion_tokens == sum(counts)


def test_log_probabilities(client):
    asked = {"model": "star", "messages": STAR, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**asked)
    choice = answer.choices[0]
    content = choice.logprobs.content
    assert "".join(entry.token for entry in content) == choice.message.content
    assert len(content) == answer.usage.completion_tokens - 1  # without the id that ends the answer
    for entry in content:
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        best = entry.top_logprobs[0]
        assert best.token == entry.token and abs(best.logprob - entry.logprob) < 1e-3
        assert entry.logprob <= 0 and best.logprob >= entry.top_logprobs[2].logprob
    streamed = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    bare = client.chat.completions.create(model="star", messages=STAR, logprobs=True)
    assert all(entry.top_logprobs == [] for entry in bare.choices[0].logprobs.content)


def test_stop_and_length(client):
    stopped = client.chat.completions.create(model="star", messages=STAR, stop=[" yel", "never"])
    assert stopped.choices[0].message.content == "The star is"
    assert stopped.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(model="star", messages=STAR, max_completion_tokens=3)
    assert cut.choices[0].message.content == "The star" and cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3


class Star(BaseModel):
    model_config = ConfigDict(extra="forbid")
    shape: str
    count: int


def test_answers_that_fit_a_schema(client):
    messages = about("Describe the star as JSON.", "shapes.png")
    parsed = client.chat.completions.parse(model="star", messages=messages, response_format=Star)
    assert isinstance(parsed.choices[0].message.parsed, Star)
    loose = client.chat.completions.create(
        model="star", messages=messages, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(loose.choices[0].message.content), dict)
    form = {"type": "regex", "regex": "(red|green)"}
    one = client.chat.completions.create(model="star", messages=STAR, response_format=form)
    assert one.choices[0].message.content in ("red", "green")
    grammar = {"type": "grammar", "grammar": 'start: "a" ("b" | "c")'}
    two = client.chat.completions.create(model="star", messages=STAR, response_format=grammar)
    assert two.choices[0].message.content in ("ab", "ac")


def test_a_schema_that_is_not_supported(client):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?<=a)b"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="star", messages=STAR, response_format=form)
    assert caught.value.param == "response_format" and "pattern" in caught.value.message


def test_fields_that_pixedge_adds(client):
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "max_image_size": 64}
    answer = client.chat.completions.create(model="star", messages=STAR, temperature=2, extra_body=extra)
    # 64 of the picture's 176 pixels on its longer side
    assert answer.usage.prompt_tokens_details.image_tokens < 20


def test_fields_that_change_nothing_are_let_stand(client):
    answer = client.chat.completions.create(
        model="star", messages=STAR, user="u", metadata={"a": "b"}, store=False, tools=[], logit_bias={}
    )
    assert answer.choices[0].message.content == "The star is yellow."


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        # by the name that the client gave it
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        ({"repeat_penalty": 0}, "repeat_penalty", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages", "invalid_messages"),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "text", "extra": 1}}, "response_format.extra", "unknown_parameter"),
    ],
)
def test_fields_that_are_refused(client, fields, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="star", messages=STAR, extra_body=fields)
    assert caught.value.param == param and caught.value.code == code
    assert caught.value.body["type"] == "invalid_request_error"
    assert param.rpartition(".")[2].rstrip("s") in caught.value.body["message"]


def test_a_prompt_that_cannot_fit_is_refused_at_once_with_both_numbers(client):
    messages = [{"role": "user", "content": "star " * 6000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="star", messages=messages)
    assert caught.value.code == "context_length_exceeded"
    sentence = caught.value.body["message"]
    assert "4,096" in sentence and "the prompt has 1" in sentence  # ten thousand and more


def test_a_wrong_or_missing_key(server):
    for key in ("wrong", KEY + "x", KEY[:-1]):
        wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError) as caught:
            wrong.chat.completions.create(model="star", messages=STAR)
        assert caught.value.code == "invalid_api_key"


def test_models(client):
    names = [model.id for model in client.models.list()]
    assert names == ["star", "demo-pixedge-4bit", "demo"]
    assert client.models.retrieve("demo").owned_by == "pixedge"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    # with an owner, as on the hub
    assert client.chat.completions.create(model="mistralai/Demo", messages=STAR, max_tokens=1).model == "star"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=STAR)
    assert caught.value.code == "model_not_found" and "'star'" in caught.value.body["message"]


def test_stages_before_the_first_token_are_comments_that_the_client_skips(client, server):
    """Who asks for them with a header gets them; the chunks are the same, and without it nothing is added."""
    messages = about("What colour is the star? " * 3, "shapes.png", "first.png")
    body = {"model": "star", "messages": messages, "temperature": 0, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}

    def events(**more):
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body, headers=headers | more, timeout=60
        ) as response:
            return response.read().decode().split("\n\n")

    plain = events()
    assert not any(event.startswith(":") for event in plain)
    told = [
        json.loads(event.removeprefix(": pixedge "))
        for event in events(**{"X-Pixedge-Progress": "1"})
        if event.startswith(":")
    ]
    assert told[-1]["name"] == "prompt" and told[-1]["total"] > told[-1]["done"] >= 0

    # two pictures that no other test has shown: known ones are not encoded again, and tell no stage
    content = [{"type": "text", "text": "Now what colour is it?"}]
    for size in ((52, 37), (37, 52)):
        content.append({"type": "image_url", "image_url": {"url": drawn(png(size, "olive"))}})
    body["messages"] = [{"role": "user", "content": content}]
    told = [event for event in events(**{"X-Pixedge-Progress": "1"}) if event.startswith(":")]
    assert json.loads(told[0].removeprefix(": pixedge ")) | {"size": 0} == {
        "name": "picture",
        "done": 0,
        "total": 2,
        "size": 0,
    }

    def text(**options):
        stream = client.chat.completions.create(**body, **options)
        return [chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content]

    assert "".join(text(extra_headers={"X-Pixedge-Progress": "1"})) == "".join(text())


def test_a_failure_after_the_first_stage_is_an_event(client):
    """The status is sent by then; what is refused before anything is computed still has its status."""
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="star",
            messages=[{"role": "user", "content": "x " * 20_000}],
            stream=True,
            extra_headers={"X-Pixedge-Progress": "1"},
        )
