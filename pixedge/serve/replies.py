"""The objects of OpenAI's API that answers are put into, whole or in chunks.

Beside OpenAI's fields stand ``usage.prompt_tokens_details.image_tokens``, the tokens that stand for patches
of pictures, and ``pixedge``: the seed of each choice, and the first choice's seconds by stage.
"""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from pixedge.model import Answer
from pixedge.sampling import SampledToken
from pixedge.stage import Stage
from pixedge.tokenizer import Tokenizer

PROGRESS = "x-pixedge-progress"
"""The request's header that asks, with 1, for comments about the stages before the first token."""

_DONE = b"data: [DONE]\n\n"

# JSON has no infinity; this is what OpenAI gives for a token that cannot be chosen.
_LEAST_LOGPROB = -9999.0


class Reply:
    """One request's answer in the making: everything that its objects have in common."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, *, logprobs: bool = False, include_usage: bool = False
    ) -> None:
        """Give the answer its id; include_usage is about streams, as ``end`` says."""
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._model, self._tokenizer, self._logprobs = model, tokenizer, logprobs
        self._created = int(time.time())
        self._include_usage = include_usage
        head = self._common("chat.completion.chunk") | ({"usage": None} if include_usage else {})
        self._head = _bytes(head)[:-1]

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Give the answer to a request without ``stream``."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self.logprobs(answer.tokens) if self._logprobs else None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        common = self._common("chat.completion")
        return {**common, "choices": choices, "usage": usage(answers), "pixedge": details(answers)}

    def first(self, choice: int) -> bytes:
        """Give the chunk that a choice begins with."""
        return self._chunk(choice, '{"role":"assistant","content":""}')

    def piece(self, choice: int, text: str, tokens: Sequence[SampledToken]) -> bytes:
        """Give a chunk of text, with its tokens where log-probabilities were asked for."""
        logprobs = json.dumps(self.logprobs(tokens)) if self._logprobs else "null"
        return self._chunk(choice, f'{{"content":{json.dumps(text)}}}', logprobs)

    def last(self, choice: int, finish_reason: str) -> bytes:
        """Give the chunk that a choice ends with."""
        return self._chunk(choice, "{}", finish=f'"{finish_reason}"')

    def end(self, answers: Sequence[Answer]) -> bytes:
        """Give what stands behind all choices: the usage in a chunk of its own if it was asked for."""
        if not self._include_usage:
            return _DONE
        rest = {"choices": [], "usage": usage(answers), "pixedge": details(answers)}
        return b"data: " + _bytes(self._common("chat.completion.chunk") | rest) + b"\n\n" + _DONE

    def logprobs(self, tokens: Sequence[SampledToken]) -> dict[str, Any]:
        """Give the tokens' log-probabilities, but not that of the id that ends an answer: it has no text."""
        shown = [token for token in tokens if token.id not in self._tokenizer.special_ids]
        content = [
            {
                **self._token(token.id, token.logprob),
                "top_logprobs": [self._token(*other) for other in token.top_logprobs],
            }
            for token in shown
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        text = data.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(data)}

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, choice: int, delta: str, logprobs: str = "null", finish: str = "null") -> bytes:
        # Put together by hand: everything but the text is the same in every chunk of an answer.
        rest = f'"index":{choice},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish}'
        return b'data: %s,"choices":[{%s}]}\n\n' % (self._head, rest.encode())


def error_event(body: dict[str, Any]) -> bytes:
    """Give the event that ends a stream which failed."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def stage_comment(stage: Stage) -> bytes:
    """Give a comment, which clients of server-sent events skip: what begins now, before the first token."""
    found = {key: value for key, value in vars(stage).items() if value is not None}
    return b": pixedge " + _bytes(found) + b"\n\n"


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Count tokens; the prompt counts once, however many choices it has."""
    first = answers[0]
    completion = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens, "image_tokens": first.image_tokens},
    }


def details(answers: Sequence[Answer]) -> dict[str, Any]:
    """Give what only pixedge tells: seeds, and seconds by stage of the first choice."""
    seconds = {name: round(value, 6) for name, value in vars(answers[0].timings).items()}
    return {"seeds": [answer.seed for answer in answers], "seconds": seconds}


def _bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
