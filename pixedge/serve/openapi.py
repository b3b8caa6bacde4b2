"""The description of the server's API, OpenAPI 3.1, as GET /openapi.json gives it.

What is described is what `pixedge.serve.chat_request` reads; fields of OpenAI's that are only let stand, and
pixedge's own, say so. A test holds both to each other, and generated requests hold the server to it.
"""

from typing import Any

import pixedge
from pixedge import messages
from pixedge.sampling import MAX_LOGPROBS, MAX_SEED
from pixedge.serve.chat_request import IGNORED, MAX_CHOICES, MAX_MESSAGES
from pixedge.serve.fields import NOTHING

_Schema = dict[str, Any]

_WHOLE = {"type": "integer", "minimum": 0}
_FLAG = {"type": ["boolean", "null"]}
_LENGTH = {"anyOf": [{"type": "null"}, {"const": -1}, {"type": "integer", "minimum": 1, "maximum": MAX_SEED}]}
_TEXT = {"type": ["string", "null"]}


def describe(model: str, key_wanted: bool) -> dict[str, Any]:
    """Give the description for a server of a model; key_wanted: all but the page and /health need one."""
    chat = {
        "operationId": "createChatCompletion",
        "summary": "Answer a conversation",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("ChatRequest")}},
        },
        "responses": {
            "200": {
                "description": "The answer; with stream, chat.completion.chunk events that end in [DONE]",
                "content": {
                    "application/json": {"schema": _ref("ChatCompletion")},
                    "text/event-stream": {},
                },
            },
            **_errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503),
        },
    }
    gets = {
        "/v1/models": _get("listModels", "The names that model may have", _ref("Models"), 401, 403),
        "/v1/models/{name}": _get("getModel", "One of them", _ref("Model"), 401, 403, 404)
        | {"parameters": [_name_parameter(model)]},
        "/health": _get("health", "Whether the server is ready", _ref("Health"), 403) | {"security": []},
        "/metrics": _get("metrics", "Figures for Prometheus", None, 401, 403, content="text/plain"),
        "/openapi.json": _get("describe", "This description", {"type": "object"}, 401, 403),
        "/": _get("page", "A page to ask with", None, 403, content="text/html") | {"security": []},
    }
    gets["/health"]["responses"]["503"] = _json("Starting or shutting down", _ref("Health"))
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "pixedge",
            "version": pixedge.__version__,
            "description": "Questions about pictures, in the form of OpenAI's chat completions.",
        },
        "paths": {
            "/v1/chat/completions": {"post": chat},
            **{path: {"get": operation} for path, operation in gets.items()},
        },
        "components": {"schemas": _schemas(model)},
    }
    if key_wanted:
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"key": []}]
    return description


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: _Schema) -> _Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> _Schema:
    sentences = {
        400: "A field, message or picture that cannot be used, or a request that does not fit",
        401: "No key, or a wrong one",
        403: "A page of another site, or a name that is not this server's",
        404: "No such model",
        408: "The body came too slowly",
        413: "The body is too large",
        415: "The body is not JSON",
        429: "The queue is full; Retry-After says when to ask again",
        500: "A fault of the server",
        503: "Starting, shutting down, or out of memory",
    }
    return {str(status): _json(sentences[status], _ref("Error")) for status in statuses}


def _get(
    name: str, summary: str, schema: _Schema | None, *errors: int, content: str = "application/json"
) -> _Schema:
    found = {"description": summary, "content": {content: {"schema": schema or {"type": "string"}}}}
    return {"operationId": name, "summary": summary, "responses": {"200": found, **_errors(*errors)}}


def _name_parameter(model: str) -> _Schema:
    return {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}


def _object(required: tuple[str, ...] = (), /, **properties: _Schema) -> _Schema:
    """Give an object that has these properties and no others."""
    return {**_open_object(required, **properties), "additionalProperties": False}


def _open_object(required: tuple[str, ...], /, **properties: _Schema) -> _Schema:
    schema: _Schema = {"type": "object", "properties": properties}
    return schema | {"required": list(required)} if required else schema


def _one(value: str) -> _Schema:
    return {"const": value}


def _about(text: str, schema: _Schema) -> _Schema:
    return {"description": text, **schema}


def _nullable(kind: str, **limits: object) -> _Schema:
    return {"type": [kind, "null"], **limits}


def _schemas(model: str) -> dict[str, _Schema]:
    return {"ChatRequest": _chat_request(model), **_message_schemas(), **_answer_schemas()}


def _chat_request(model: str) -> _Schema:
    own = "pixedge's own: "
    described = _open_object(
        ("model", "messages"),
        model={"type": "string", "minLength": 1, "examples": [model]},
        messages={"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": _ref("Message")},
        stream=_FLAG,
        stream_options={
            "anyOf": [{"type": "null"}, _object(include_usage=_FLAG, include_obfuscation={})],
            "description": "Only with stream",
        },
        n=_nullable("integer", minimum=1, maximum=MAX_CHOICES),
        max_tokens=_about("-1 is the same as none", _LENGTH),
        max_completion_tokens=_about("A newer name of max_tokens", _LENGTH),
        temperature=_nullable("number", minimum=0),
        top_p=_nullable("number", exclusiveMinimum=0, maximum=1),
        top_k=_about(f"{own}0 and -1 keep all", _nullable("integer", minimum=-1, maximum=MAX_SEED)),
        min_p=_about(
            f"{own}share of the likeliest token's probability", _nullable("number", minimum=0, maximum=1)
        ),
        repetition_penalty=_about(f"{own}1 is off", _nullable("number", exclusiveMinimum=0)),
        repeat_penalty=_about("Another name of repetition_penalty", _nullable("number", exclusiveMinimum=0)),
        presence_penalty=_nullable("number", minimum=-2, maximum=2),
        frequency_penalty=_nullable("number", minimum=-2, maximum=2),
        seed=_about("-1 is the same as none", _nullable("integer", minimum=-1, maximum=MAX_SEED)),
        stop={
            "anyOf": [
                {"type": ["string", "null"], "maxLength": 1024},
                {"type": "array", "items": {"type": "string", "maxLength": 1024}, "maxItems": 16},
            ]
        },
        logprobs=_FLAG,
        top_logprobs=_about("Only with logprobs", _nullable("integer", minimum=0, maximum=MAX_LOGPROBS)),
        response_format={"anyOf": [{"type": "null"}, _ref("ResponseFormat")]},
        max_image_size=_about(
            f"{own}cap on the longer side of every picture, in pixels", _nullable("integer", minimum=1)
        ),
        continue_final_message=_about("Continue a last assistant message, as its prefix does", _FLAG),
        **{name: _about("Let stand without effect", {}) for name in IGNORED},
    )
    return described | {"additionalProperties": {"enum": list(NOTHING)}}


def _message(role: _Schema, content: _Schema, **more: _Schema) -> _Schema:
    ignored = {name: _about("Let stand without effect", {}) for name in messages.IGNORED}
    described = _open_object(("role", "content"), role=role, content=content, **more, **ignored)
    return described | {"additionalProperties": {"enum": [*NOTHING, False]}}


def _message_schemas() -> dict[str, _Schema]:
    text = _open_object(("type", "text"), type=_one("text"), text={"type": "string"})
    url = {"type": "string", "description": "data:image/…;base64,…; others only where the server allows them"}
    picture = _open_object(
        ("type", "image_url"),
        type=_one("image_url"),
        image_url={"anyOf": [url, _open_object(("url",), url=url, detail={"type": "string"})]},
    )
    plain = {"anyOf": [{"type": "string"}, {"type": "array", "items": text}]}
    mixed = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [text, picture]}}]}
    prefix = _about("pixedge's own, of the last message: it is continued", {"type": "boolean"})
    schema = {"type": "object", "description": "JSON schema"}
    return {
        "Message": {
            "anyOf": [
                _message({"enum": ["system", "developer"]}, plain),
                _message(_one("user"), mixed),
                _message(_one("assistant"), plain, prefix=prefix),
            ]
        },
        "ResponseFormat": {
            "anyOf": [
                _object(("type",), type=_one("text")),
                _object(("type",), type=_one("json_object")),
                _object(
                    ("type", "json_schema"),
                    type=_one("json_schema"),
                    json_schema=_object(("schema",), schema=schema, name={}, description={}, strict={}),
                ),
                _object(("type", "regex"), type=_one("regex"), regex={"type": "string", "minLength": 1}),
                _object(
                    ("type", "grammar"), type=_one("grammar"), grammar={"type": "string", "minLength": 1}
                ),
            ],
            "description": "regex and grammar (Lark) are pixedge's own",
        },
    }


def _answer_schemas() -> dict[str, _Schema]:
    choice = _open_object(
        ("index", "message", "logprobs", "finish_reason"),
        index=_WHOLE,
        message=_open_object(("role", "content"), role=_one("assistant"), content={"type": "string"}),
        logprobs={"type": ["object", "null"]},
        finish_reason={"enum": ["stop", "length"]},
    )
    usage = _open_object(
        ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"),
        prompt_tokens=_WHOLE,
        completion_tokens=_WHOLE,
        total_tokens=_WHOLE,
        prompt_tokens_details=_open_object(
            ("cached_tokens", "image_tokens"), cached_tokens=_WHOLE, image_tokens=_WHOLE
        ),
    )
    stages = ("image_decode", "encode", "prefill", "first_token", "decode")
    own = _open_object(
        ("seeds", "seconds"),
        seeds={"type": "array", "items": _WHOLE},
        seconds=_open_object(stages, **{stage: {"type": "number", "minimum": 0} for stage in stages}),
    )
    named = _open_object(("id", "object"), id={"type": "string"}, object=_one("model"))
    return {
        "ChatCompletion": _open_object(
            ("id", "object", "created", "model", "choices", "usage", "pixedge"),
            id={"type": "string"},
            object=_one("chat.completion"),
            created=_WHOLE,
            model={"type": "string"},
            choices={"type": "array", "minItems": 1, "items": choice},
            usage=usage,
            pixedge=own,
        ),
        "Model": named,
        "Models": _open_object(
            ("object", "data"), object=_one("list"), data={"type": "array", "items": named}
        ),
        "Health": _open_object(("status",), status={"type": "string"}),
        "Error": _object(
            ("error",),
            error=_object(
                ("message", "type", "param", "code"),
                message={"type": "string"},
                type={"type": "string"},
                param=_TEXT,
                code=_TEXT,
            ),
        ),
    }
