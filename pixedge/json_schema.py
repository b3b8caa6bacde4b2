"""Which JSON schemas an answer can be held to, word for word; everything else is refused by its name.

A keyword that is silently left out would give answers that the schema's owner takes for valid. So the
keywords are listed here: those that are kept to, those that say nothing about an answer, and no others.
"""

import re
from collections.abc import Iterator
from typing import Any

from pixedge.errors import UsageError
from pixedge.held_schema import (
    EMPTY,
    NAMED_SCHEMAS,
    SCHEMA,
    SCHEMAS,
    STANDARD_FORMATS,
    plain_pattern,
)
from pixedge.schema_dialects import MAX_DEPTH, NOTES, is_note

FORMATS = frozenset(
    {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
)
"""The values of "format" that are kept to; those that JSON Schema does not define are annotations."""

_VALUES = frozenset(
    {
        *("type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("$ref", "$anchor", "$id"),
    }
)
KEYWORDS = SCHEMA | SCHEMAS | NAMED_SCHEMAS | _VALUES | NOTES
"""Every keyword that a schema may hold; besides, any that is a note by its form (``is_note``)."""


_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
_LETTERS = re.compile(r"\\.|\[[^\]]*\]", re.DOTALL)  # where a parenthesis opens nothing


def check_schema(schema: Any) -> None:
    """Refuse a schema with a keyword or a value that no answer could be held to.

    Raises UsageError, which names the keyword and where it stands (a JSON pointer).
    """
    if schema is False:
        raise UsageError("the schema is false, which no answer can meet; give one that allows something")
    # Too deep is refused first: what follows goes down by recursion.
    for place, each in subschemas(schema):
        if isinstance(each, dict):
            _check_keywords(place, each)
    from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]
    from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]

    try:
        # Without formats: patterns are not those of Python's re, and llguidance looks at them next.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(()))
    except SchemaError as error:
        path = [str(part) for part in error.absolute_path]
        keyword = f"{path[-1]!r} at {_pointer(path[:-1])}" if path else "the schema itself"
        raise UsageError(f"the schema is wrong in {keyword}: {error.message[:160]}") from None


def subschemas(schema: Any, place: str = "#", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield a schema and all that it holds, each with its place (a JSON pointer), before going into it."""
    if depth > MAX_DEPTH:
        raise UsageError(f"the schema is more than {MAX_DEPTH} schemas deep; use $ref or make it flatter")
    yield place, schema
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        below = f"{place}/{keyword}"
        if keyword in SCHEMA:
            yield from subschemas(value, below, depth + 1)
        elif keyword in SCHEMAS and isinstance(value, list):
            for at, each in enumerate(value):
                yield from subschemas(each, f"{below}/{at}", depth + 1)
        elif keyword in NAMED_SCHEMAS and isinstance(value, dict):
            for name, each in value.items():
                yield from subschemas(each, f"{below}/{_escape(name)}", depth + 1)


def _check_keywords(place: str, schema: dict[str, Any]) -> None:
    for keyword, value in schema.items():
        if keyword in EMPTY and value in EMPTY[keyword]:
            continue
        if keyword not in KEYWORDS and not is_note(keyword):
            raise UsageError(
                f"the schema has the keyword {keyword!r} at {place}, which pixedge cannot hold an answer to;"
                " leave it out"
            )
    kind = schema.get("format")
    if isinstance(kind, str) and kind in STANDARD_FORMATS - FORMATS:
        raise UsageError(
            f"the schema has the 'format' {kind!r} at {place}, which pixedge cannot hold an answer to; use"
            f" {', '.join(sorted(FORMATS))}, or a pattern"
        )
    pattern = schema.get("pattern")
    if (
        isinstance(pattern, str)
        and _LOOK_AROUND.search(_LETTERS.sub("", pattern)) is not None
        and plain_pattern(pattern) is None
    ):
        raise UsageError(
            f"the schema has the 'pattern' {pattern[:80]!r} at {place}, whose look-around pixedge cannot hold"
            " an answer to; write it without"
        )
    ref = schema.get("$ref")
    if isinstance(ref, str) and not ref.startswith("#"):
        raise UsageError(
            f"the schema has the '$ref' {ref!r} at {place}, which lies outside of it; move that schema into"
            " $defs"
        )
    _check_least_properties(place, schema)


def _check_least_properties(place: str, schema: dict[str, Any]) -> None:
    """Refuse a least number of properties where it can be met by one key written twice."""
    least = schema.get("minProperties", 0)
    required = schema.get("required")
    sure = max(1, len(set(map(str, required))) if isinstance(required, list) else 0)
    free = schema.get("additionalProperties", True) is not False or schema.get("patternProperties")
    if isinstance(least, int) and least > sure and free:
        raise UsageError(
            f"the schema has 'minProperties' {least} at {place}, where keys are free and one could come"
            " twice; name the properties and set additionalProperties to false, or list them in required"
        )


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _pointer(path: list[str]) -> str:
    return "/".join(["#", *path])
