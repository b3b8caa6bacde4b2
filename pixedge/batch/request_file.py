"""A file of requests in OpenAI's batch form: a line of JSON each, with custom_id, method, url and body.

The file is gone through once before any work, which finds what makes the file as a whole useless: a line
that is no JSON object, an id that is missing or given twice. What is wrong with one request alone is found
when its turn comes, and is that item's own error. Bodies stay in the file until then: with pictures in them
they may be larger than the memory.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from pixedge.answer_format import AnswerFormat
from pixedge.batch.item import Asked, Item
from pixedge.errors import UsageError
from pixedge.messages import Messages
from pixedge.model import Model
from pixedge.serve.chat_request import parse
from pixedge.serve.errors import Refusal, refusal
from pixedge.serve.media import MediaSettings, read_pictures

URL = "/v1/chat/completions"
MAX_LINE = 256 << 20
"""Bytes of a request."""

MAX_ID = 512
"""Characters of a custom_id."""

_FIELDS = {"custom_id", "method", "url", "body"}


class RequestFile:
    """Requests of a JSONL file, each an item by its custom_id."""

    def __init__(self, path: Path, media: MediaSettings) -> None:
        """Go through the file; media says which pictures requests may bring.

        Raises UsageError, which names the line, where the file as a whole cannot be used.
        """
        self._path, self._media = path, media
        self._places: list[tuple[int, int]] = []  # offset and bytes of each request
        items: list[Item] = []
        seen: dict[str, int] = {}
        try:
            with path.open("rb") as file:
                for number, offset, line in _lines(file, path):
                    name = _custom_id(line, f"line {number} of {path}")
                    if name in seen:
                        raise UsageError(
                            f"line {number} of {path} has the custom_id {name!r} of line {seen[name]}; give "
                            "each request its own"
                        )
                    seen[name] = number
                    items.append(Item(name, hashlib.sha256(line.strip()).hexdigest()[:16]))
                    self._places.append((offset, len(line)))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); give a file of requests") from None
        if not items:
            raise UsageError(f"{path} holds no requests; give a file with one JSON object a line")
        self.items: Sequence[Item] = tuple(items)

    def read(self, index: int, model: Model) -> Asked:
        """Read a request and build its prompt; see Inputs."""
        start = time.perf_counter()
        asked = parse(self._body(index))
        if asked.stream:
            raise Refusal(400, "stream is true, and a batch has no streams; leave it out", param="stream")
        vision = model.config.vision
        caps = (asked.max_image_size, model.max_image_size, vision.image_size)
        longest = min(cap for cap in caps if cap is not None)
        messages = read_pictures(asked.messages, self._media, (longest, vision.patch_size))
        prompt = model.tokenizer.encode(cast(Messages, messages), longest, self._media.limits)
        params = asked.params
        if not asked.max_tokens_given:
            params = dataclasses.replace(
                params,
                max_tokens=max(1, min(params.max_tokens, model.engine.cache.tokens + 1 - len(prompt.ids))),
            )
        model.engine.room(len(prompt.ids), params.max_tokens)
        if asked.form is not None:
            try:
                params = dataclasses.replace(params, answer_format=AnswerFormat(*asked.form))
            except UsageError as error:
                raise refusal(error, "response_format") from None
        choices = tuple(asked.choice_params(params, choice) for choice in range(asked.choices))
        return Asked(prompt, choices, asked.logprobs, time.perf_counter() - start)

    def _body(self, index: int) -> Any:
        """Read the request's line again and give its body; Refusal where it asks for something else."""
        offset, length = self._places[index]
        with self._path.open("rb") as file:
            file.seek(offset)
            request = json.loads(file.read(length))
        for name, value in request.items():
            if name not in _FIELDS:
                raise Refusal(
                    400, f"{name[:80]} is not a field of a batch request; leave it out", param=name[:80]
                )
            if name in ("method", "url") and value != (wanted := {"method": "POST", "url": URL}[name]):
                raise Refusal(400, f"{name} is {str(value)[:80]!r}; pixedge has {wanted}", param=name)
        if missing := sorted(_FIELDS - set(request)):
            raise Refusal(
                400, f"{missing[0]} is missing; give {', '.join(sorted(_FIELDS))}", param=missing[0]
            )
        return request["body"]


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and bytes of each line that is not blank."""
    offset = number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UsageError(
                f"line {number} of {path} is longer than {MAX_LINE:,} bytes; send smaller pictures"
            )
        if line.strip(b" \t\r\n\xef\xbb\xbf" if number == 1 else None):
            start = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0  # a byte order mark
            yield number, offset + start, line[start:]
        offset += len(line)


def _custom_id(line: bytes, where: str) -> str:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({str(error)[:100]}); give one JSON object a line") from None
    if not isinstance(request, dict):
        raise UsageError(f"{where} is not a JSON object; give custom_id, method, url and body")
    name = request.get("custom_id")
    if not isinstance(name, str) or not name or len(name) > MAX_ID:
        raise UsageError(
            f"{where} has the custom_id {str(name)[:40]!r}; give each request a string of up to {MAX_ID} "
            "characters"
        )
    return name
