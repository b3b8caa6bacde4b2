"""What an answer must match: a JSON schema, a regular expression or a grammar, checked before any work."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pixedge.errors import UsageError
from pixedge.format_limits import (
    LARK_LITERALS,
    MAX_CHARACTERS,
    MAX_WITH_NOTES,
    check_lark,
    check_regex,
    check_schema_limits,
)
from pixedge.format_probe import UNREADABLE, grammar_of
from pixedge.format_trial import find_fault
from pixedge.json_schema import check_schema
from pixedge.schema_dialects import translate

_LONGEST = 360  # characters of a refusal

_NOUNS = {"schema": "schema", "regex": "regular expression", "lark": "grammar"}


@dataclass(frozen=True)
class AnswerFormat:
    r"""A rule that the whole text of an answer keeps to.

    kind says what text is: "schema" a JSON schema (draft 2020-12) as JSON, "regex" a regular expression that
    the whole answer matches (in the syntax of Rust's regex, \d being 0 to 9, without look-around and
    back-references), "lark" a grammar in llguidance's form of Lark whose rule `start` the answer follows.

    Raises UsageError, with the keyword or the place, for a format that is wrong or not supported.
    """

    kind: Literal["schema", "regex", "lark"]
    text: str

    def __post_init__(self) -> None:
        """Check the text; nothing is compiled against a vocabulary yet."""
        try:
            self._check()
        except UsageError as error:
            if len(str(error)) <= _LONGEST:
                raise
            raise UsageError(f"{str(error)[: _LONGEST - 1]}…") from None  # it repeats the format's names

    def _check(self) -> None:
        if self.kind not in _NOUNS:
            raise UsageError(f"the kind of format is {self.kind!r}; use {', '.join(_NOUNS)}")
        if not isinstance(self.text, str):
            raise UsageError(f"the {self.noun} is a {type(self.text).__name__}; give a string")
        self._check_length(MAX_WITH_NOTES if self.kind == "schema" else MAX_CHARACTERS)
        if self.kind == "schema":
            schema = translate(_parse(self.text))
            check_schema_limits(schema)
            check_schema(schema)
            # True is a form that llguidance takes no options with
            object.__setattr__(self, "text", "{}" if schema is True else json.dumps(schema))
            self._check_length(MAX_CHARACTERS, ", notes left out,")
        elif self.kind == "regex":
            if not self.text:
                raise UsageError("the regular expression is empty; give one that an answer can match")
            check_regex(self.text)
        elif self.kind == "lark":
            _refuse_control_tokens(self.text)
            check_lark(self.text)
        if fault := find_fault(self.kind, self.text, self.noun):
            unread = fault.startswith(UNREADABLE)
            cause = fault[:200] if unread else f"cannot be used: {_first_cause(fault)}"
            raise UsageError(f"the {self.noun} {cause}")

    def _check_length(self, most: int, of: str = "") -> None:
        if len(self.text) > most:
            raise UsageError(
                f"the {self.noun}{of} has {len(self.text):,} characters and the limit is {most:,}; make it"
                " shorter"
            )

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any] | bool | str) -> "AnswerFormat":
        """Take a JSON schema, or its text."""
        if isinstance(schema, str):
            return cls("schema", schema)
        try:
            return cls("schema", json.dumps(schema, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the schema cannot be written as JSON: {error}") from None

    @classmethod
    def json_object(cls) -> "AnswerFormat":
        """Any JSON object."""
        return cls.from_schema({"type": "object"})

    @classmethod
    def from_regex(cls, regex: str) -> "AnswerFormat":
        """Take a regular expression for the whole answer."""
        return cls("regex", regex)

    @classmethod
    def from_lark(cls, grammar: str) -> "AnswerFormat":
        """Take a Lark grammar with a rule `start`."""
        return cls("lark", grammar)

    @classmethod
    def choose(
        cls,
        schema: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> "AnswerFormat | None":
        """Take the one that is given; None without any. Raises UsageError for more than one."""
        given = {"schema": schema, "regex": regex, "grammar": grammar}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise UsageError(f"{' and '.join(names)} are given, but an answer matches one of them; give one")
        if schema is not None:
            return cls.from_schema(schema)
        if regex is not None:
            return cls.from_regex(regex)
        return None if grammar is None else cls.from_lark(grammar)

    @property
    def noun(self) -> str:
        """What a person calls it."""
        return _NOUNS[self.kind]

    @property
    def compiled(self) -> str:
        """The grammar in llguidance's own form."""
        return grammar_of(self.kind, self.text)


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"the schema is not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the schema is not JSON that can be read: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _refuse_control_tokens(grammar: str) -> None:
    """Refuse <name> and <[id]>, with which llguidance would let an answer hold control tokens."""
    bare = LARK_LITERALS.sub(lambda literal: " " * len(literal[0]), grammar)
    if found := re.search(r"<[^\s>]*>?", bare):
        line = bare.count("\n", 0, found.start()) + 1
        raise UsageError(
            f"the grammar asks for the token {found[0][:80]} in line {line}, but an answer never holds"
            ' control tokens; put text into quotes, as in "<b>"'
        )


def _first_cause(fault: str) -> str:
    """Give the one line of llguidance's message that says what is wrong, with its place in a grammar."""
    if fault.startswith("oneOf"):
        return (
            "'oneOf' is kept to only where its schemas exclude each other, by their types for one; use anyOf"
        )
    if cause := re.search(r"^error: (.+)$", fault, re.MULTILINE):
        named = "'pattern': " if fault.startswith("regex parse error") else ""
        return f"{named}{cause[1][:200]}"
    first = fault.partition("\n")[0].strip()
    if place := re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", first):
        return f"line {place[1]}, column {place[2]}: {place[3][:200]}"
    return first[:200]
