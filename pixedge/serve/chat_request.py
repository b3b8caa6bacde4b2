"""The body of /v1/chat/completions: OpenAI's fields and pixedge's own, strictly typed.

What pixedge has is read. What asks for nothing that changes an answer is let stand (IGNORED). What asks for
something that pixedge does not have is refused unless it asks for nothing (NEUTRAL), and every other field is
refused by name. docs/serve.md lists them all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from pixedge.errors import UsageError
from pixedge.messages import shown
from pixedge.sampling import MAX_SEED, SamplingParams
from pixedge.serve.errors import Refusal
from pixedge.serve.fields import Fields

FormatKind: TypeAlias = Literal["schema", "regex", "lark"]

MAX_CHOICES = 16
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
DEFAULT_MAX_TOKENS = 1024

IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "prediction", "reasoning_effort"),
    *("id", "chat_id", "session_id", "conversation_id", "request_id", "message_id", "trace_id"),
    *("keep_alive", "ttl", "cache_prompt", "id_slot", "slot_id", "priority", "include_reasoning"),
    *("reasoning_format", "timings_per_token", "return_progress"),
)
"""Fields that may hold anything and change nothing about the answer.

OpenAI's own; names that clients give to a request; how long to keep a model and what to cache (Ollama, LM
Studio, llama.cpp, vLLM); how much to reason and how to show it, which this model does not.
"""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": (),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": (),
    "function_call": ("none", "auto"),
    "logit_bias": (),
    "modalities": (["text"],),
    "audio": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "chat_template_kwargs": ({"enable_thinking": False}, {"thinking": False}),
    "enable_thinking": (False,),
    "thinking": ({"type": "disabled"}, False),
    "think": (False,),
    "reasoning": ({"effort": "none"}, {"enabled": False}),
    "safe_prompt": (False,),
    "echo": (False,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "n_probs": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "repeat_last_n": (-1,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
}
"""Fields that ask for what pixedge does not have, with the values that ask for nothing; empty ones do too."""

_OTHER_NAMES = {
    "logprobs": ("top_logprobs",),
    "max_tokens": ("max_completion_tokens",),
    "repetition_penalty": ("repeat_penalty",),
}
"""What clients call a parameter of SamplingParams, where that is not its own name."""


@dataclass(frozen=True)
class ChatRequest:
    """One request: what to say, in how many choices, in which form.

    params.max_tokens is DEFAULT_MAX_TOKENS where the client named none, as ``max_tokens_given`` tells.
    form is what the text must match as AnswerFormat takes it, which is left to whoever can wait: reading a
    large one takes a while.
    """

    model: str
    messages: list[Mapping[str, Any]]
    params: SamplingParams
    max_tokens_given: bool
    choices: int
    logprobs: bool
    stream: bool
    include_usage: bool
    max_image_size: int | None
    form: tuple[FormatKind, str] | None

    @staticmethod
    def choice_params(params: SamplingParams, index: int) -> SamplingParams:
        """Give the sampling of one choice: with a seed, each choice has the one behind the last one's."""
        if params.seed is None or index == 0:
            return params
        return replace(params, seed=(params.seed + index) % (MAX_SEED + 1))


def parse(value: object) -> ChatRequest:
    """Read a request from the JSON value; raises Refusal with the field at fault."""
    fields = Fields(value)
    model = fields.text("model")
    if not model:
        raise Refusal(400, "model is missing; name the model (GET /v1/models)", param="model")
    messages = fields.take("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages is missing or empty; give at least one user message", param="messages")
    if len(messages) > MAX_MESSAGES:
        message = f"messages has {len(messages):,} items and the limit is {MAX_MESSAGES:,}; send fewer"
        raise Refusal(400, message, param="messages", code="invalid_value")
    messages = _continued(fields, messages)
    choices = fields.integer("n")
    if choices is not None and not 1 <= choices <= MAX_CHOICES:
        raise Refusal(400, f"n is {choices}; give 1 to {MAX_CHOICES}", param="n", code="invalid_value")
    stream = fields.flag("stream")
    logprobs = fields.flag("logprobs")
    params, max_tokens_given = _params(fields, logprobs)
    form = _response_format(fields)
    include_usage = _stream_options(fields, stream)
    max_image_size = fields.integer("max_image_size")
    if max_image_size is not None and max_image_size < 1:
        message = f"max_image_size is {max_image_size}; give at least 1 pixel"
        raise Refusal(400, message, param="max_image_size", code="invalid_value")
    fields.ignore(IGNORED)
    for name, neutral in NEUTRAL.items():
        fields.allow_only(name, *neutral)
    fields.finish()
    return ChatRequest(
        model=model,
        messages=messages,
        params=params,
        max_tokens_given=max_tokens_given,
        choices=choices or 1,
        logprobs=logprobs,
        stream=stream,
        include_usage=include_usage,
        max_image_size=max_image_size,
        form=form,
    )


def _params(fields: Fields, logprobs: bool) -> tuple[SamplingParams, bool]:
    """Read how to sample, and whether the client said how long the answer may be."""
    top = fields.integer("top_logprobs")
    if top and not logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    # -1 is how llama.cpp, and clients made for it, leave a length or a seed open.
    old, new = _open(fields.integer("max_tokens")), _open(fields.integer("max_completion_tokens"))
    if old is not None and new is not None and old != new:
        message = f"max_tokens is {old} and max_completion_tokens {new}; give one of them"
        raise Refusal(400, message, param="max_tokens")
    longest = old if new is None else new
    stop, top_k = tuple(filter(None, fields.texts("stop"))), fields.integer("top_k")
    if len(stop) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in stop):
        allowed = f"up to {MAX_STOPS} of up to {MAX_STOP_LENGTH} characters"
        raise Refusal(400, f"stop has too many strings or too long ones; give {allowed}", param="stop")
    try:
        params = SamplingParams(
            temperature=fields.number("temperature", 0.0),
            top_k=0 if top_k in (None, -1) else top_k,  # -1 is how some servers spell "all"
            top_p=fields.number("top_p", 1.0),
            min_p=fields.number("min_p", 0.0),
            repetition_penalty=_repetition_penalty(fields),
            presence_penalty=fields.number("presence_penalty", 0.0),
            frequency_penalty=fields.number("frequency_penalty", 0.0),
            seed=_open(fields.integer("seed")),
            stop=stop,
            max_tokens=DEFAULT_MAX_TOKENS if longest is None else longest,
            logprobs=(top or 0) if logprobs else None,
        )
    except UsageError as error:
        name, blank, words = str(error).partition(" ")
        for said in _OTHER_NAMES.get(name, ()):
            if fields.take(said) is not None:
                name = said
        raise Refusal(400, f"{name}{blank}{words}", param=name, code="invalid_value") from None
    return params, longest is not None


def _continued(fields: Fields, messages: list[Any]) -> list[Any]:
    """Mark the last message to be continued where it is asked for in vLLM's way."""
    continued = fields.flag("continue_final_message")
    fields.allow_only("add_generation_prompt", not continued)
    if not continued:
        return messages
    if not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        message = "continue_final_message is true, but the last message is not the assistant's"
        raise Refusal(400, f"{message}; add the beginning of its answer", param="continue_final_message")
    return [*messages[:-1], {**messages[-1], "prefix": True}]


def _open(value: int | None) -> int | None:
    return None if value == -1 else value


def _repetition_penalty(fields: Fields) -> float:
    """Read repetition_penalty, which llama.cpp and Ollama call repeat_penalty."""
    first, second = fields.number("repetition_penalty", 1.0), fields.number("repeat_penalty", 1.0)
    if fields.take("repeat_penalty") is None:
        return first
    if fields.take("repetition_penalty") is not None and first != second:
        message = f"repetition_penalty is {first} and repeat_penalty {second}; give one of them"
        raise Refusal(400, message, param="repeat_penalty")
    return second


def _stream_options(fields: Fields, stream: bool) -> bool:
    """Read whether the last chunk is to tell the usage."""
    options = fields.inner("stream_options")
    if options is None:
        return False
    include = options.flag("include_usage")
    options.ignore(("include_obfuscation",))
    options.allow_only("continuous_usage_stats", False)
    options.finish()
    if include and not stream:
        raise Refusal(400, "stream_options needs stream to be true", param="stream_options")
    return include


def _response_format(fields: Fields) -> tuple[FormatKind, str] | None:
    """Read what the text must match."""
    form = fields.inner("response_format")
    if form is None:
        return None
    found: tuple[FormatKind, str] | None = None
    kind = form.text("type")
    if kind == "json_object":
        found = ("schema", '{"type": "object"}')
    elif kind == "json_schema":
        found = ("schema", json.dumps(_schema(form)))
    elif kind == "regex":
        found = ("regex", _required(form, "regex"))
    elif kind == "grammar":
        found = ("lark", _required(form, "grammar"))
    elif kind != "text":
        raise Refusal(
            400,
            f"response_format.type is {shown(kind)}; use text, json_object, json_schema, regex or grammar",
            param="response_format.type",
            code="invalid_value",
        )
    form.finish()
    return found


def _required(form: Fields, name: str) -> str:
    text = form.text(name)
    if not text:
        path = form.path(name)
        raise Refusal(400, f"{path} is missing; give what the text must match", param=path)
    return text


def _schema(form: Fields) -> dict[str, Any]:
    inner = form.inner("json_schema")
    schema = None if inner is None else inner.take("schema")
    if inner is None or not isinstance(schema, dict):
        path = "response_format.json_schema.schema"
        raise Refusal(400, f"{path} is missing; give a JSON schema", param=path)
    inner.ignore(("name", "description", "strict"))  # what a schema asks for always holds
    inner.finish()
    return schema
