"""JSON whose long strings are pictures in base64, read without a second copy of them on the way.

A str takes up to four bytes a character if one character in it is wide, so one emoji beside a picture of
60 MB made 240 MB of the text that the parser reads. Here the payloads of data: URLs are cut out before the
rest is decoded and parsed, and put into the strings that they came from. What is left is text, and is refused
when it is more than could ever be a prompt.
"""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from pixedge.serve.errors import Refusal

TOO_LONG = "context_length_exceeded"

# Characters of a payload's name.
_NAME = 40

# What a payload begins behind, and the length below which it is left where it is.
_BEFORE = b"base64,"
_LONG = 4096

# A character outside of the basic plane may be written as two escapes.
_BYTES_A_CHARACTER = 12
# What is no text of messages: roles, field names, a schema.
_OTHER = 1 << 20

# Pictures are long strings, so an honest body has few of these; each one becomes an object in memory.
_MARKS = 1_000_000
_MARK_BYTES = 128

_WIDE_ESCAPE = re.compile(rb"\\u(?!00)")


class JsonBody:
    """A body whose payloads are found; its rest is not parsed yet."""

    def __init__(self, body: bytes | bytearray, most_characters: int) -> None:
        """Look for the payloads; raises Refusal for more text than messages of most_characters could be."""
        self._most_characters = most_characters
        parts: list[bytes | bytearray] = []
        self._payloads: dict[str, bytes | bytearray] = {}
        at = 0
        for start, end in _find_payloads(body):
            name = f"payload {secrets.token_hex(16)}"  # which no client can have guessed
            self._payloads[name] = body[start:end]
            parts += [body[at:start], name.encode()]
            at = end
        if len(body) - sum(map(len, self._payloads.values())) > _BYTES_A_CHARACTER * most_characters + _OTHER:
            raise self._too_long()
        self._rest = b"".join([*parts, body[at:]])
        self._marks = sum(map(self._rest.count, (b",", b"[", b"{", b":")))
        if self._marks > _MARKS:
            raise Refusal(400, f"the body has more than {_MARKS:,} fields and items; send less")

    @property
    def parsed_bytes(self) -> int:
        """The most bytes that the value takes."""
        width = 1 if self._rest.isascii() and b"\\u" not in self._rest else 4
        payloads = sum(map(len, self._payloads.values()))
        return payloads + len(self._rest) * width + self._marks * _MARK_BYTES

    @property
    def parsing_bytes(self) -> int:
        """The most bytes that parsing takes beside the body: its parts, these decoded, and the value."""
        return 3 * self.parsed_bytes

    def parse(self) -> Any:
        """Give the value; raises Refusal for what is not JSON."""
        try:
            value = json.loads(self._rest, parse_constant=_refuse_constant)
            return self._restored(value) if self._payloads else value
        except RecursionError:
            raise Refusal(400, "the body is nested too deeply; send a chat completion request") from None
        except ValueError as error:  # of JSON, of UTF-8, or a number of too many digits
            raise Refusal(400, f"the body is not JSON ({str(error)[:120]}); send a JSON object") from None

    def _restored(self, value: Any) -> Any:
        """Put the payloads into the strings that end with their names, in place."""
        if isinstance(value, str):
            return self._with_payload(value)
        if isinstance(value, list):
            value[:] = map(self._restored, value)
        elif isinstance(value, dict):
            for key in list(value):
                value[self._with_payload(key)] = self._restored(value.pop(key))
        return value

    def _with_payload(self, text: str) -> str:
        payload = self._payloads.pop(text[-_NAME:], None)
        if payload is None:
            return text
        before = text[:-_NAME]
        if not before.isascii() and len(payload) > self._most_characters:
            raise self._too_long()  # a text, and a wide one
        escaped = b"\\" in payload
        return before + (json.loads(b'"%s"' % payload) if escaped else payload.decode("ascii"))

    def _too_long(self) -> Refusal:
        return Refusal(
            400,
            f"the messages hold more than {self._most_characters:,} characters of text; send less text",
            param="messages",
            code=TOO_LONG,
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _find_payloads(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Give where each long payload begins and ends: with the string that it is in."""
    start = 0
    while (start := body.find(_BEFORE, start)) >= 0:
        start += len(_BEFORE)
        end = body.find(b'"', start)
        if end < 0:
            return
        # a backslash: the quote may be part of the text
        if end - start >= _LONG and body[end - 1 : end] != b"\\" and _is_narrow(body[start:end]):
            yield start, end
            start = end


def _is_narrow(payload: bytes | bytearray) -> bool:
    """Say whether a part of a JSON string has only characters of one byte."""
    return payload.isascii() and (b"\\u" not in payload or not _WIDE_ESCAPE.search(payload))
