"""A JSON schema in the words of draft 2020-12 alone, whatever generator and draft it was written by.

Notes are left out, so that they count for no limit and may be of any type. What older drafts and OpenAPI 3.0
say otherwise gets its present name, and what has an equal among the keywords that answers are held to is
replaced by it. All of it means the same as before.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from pixedge.errors import UsageError
from pixedge.held_schema import EMPTY, NAMED_SCHEMAS, SCHEMA, SCHEMAS

MAX_DEPTH = 64
"""Deeper schemas stay as they are; they are refused."""

MAX_NAMED = 2_000
"""Keys that propertyNames may list, each time that a list is used."""

NOTES = frozenset(
    {
        *("$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly"),
        *("writeOnly", "contentEncoding", "contentMediaType", "contentSchema"),
        # of OpenAPI, of form builders and editors; a null that nullable allows is just never said
        *("discriminator", "nullable", "example", "xml", "externalDocs", "enumNames", "enumDescriptions"),
        *("markdownDescription", "propertyOrdering", "errorMessage", "markdownEnumDescriptions"),
        *("deprecationMessage", "patternErrorMessage", "defaultSnippets", "doNotSuggest", "suggestSortText"),
        *("enumItemLabels", "allowComments", "allowTrailingCommas", "propertyOrder", "tsType", "tsEnumNames"),
        *("javaType", "existingJavaType", "goJSONSchema", "env_names"),
    }
)
"""Keywords that say nothing about an answer."""

# Zod's for an e-mail address (4.0 to 4.3) and for a duration, written without their look-ahead: no dot at the
# beginning, none after another; something after P, and after T.
_PATTERNS = {
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^([A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$": (
        r"^P(\d+W|(\d+Y(\d+M)?(\d+D)?|\d+M(\d+D)?|\d+D)(T(\d+H(\d+M)?(\d+([.,]\d+)?S)?|\d+M(\d+([.,]\d+)?S)?"
        r"|\d+([.,]\d+)?S))?|T(\d+H(\d+M)?(\d+([.,]\d+)?S)?|\d+M(\d+([.,]\d+)?S)?|\d+([.,]\d+)?S))$"
    ),
}


def is_note(keyword: str) -> bool:
    """Tell whether a keyword says nothing about an answer; no keyword of JSON Schema has a colon."""
    return keyword in NOTES or ":" in keyword or (keyword.startswith("x-") and keyword != "x-guidance")


def translate(schema: Any) -> Any:
    """Return a schema in the words of draft 2020-12; the one given is not changed."""
    whole = _Whole(schema)
    translated = _translate(schema, whole, 0)
    moved = [path for path in whole.paths if whole.room < MAX_NAMED and "/additionalProperties" in path]
    if moved:
        raise UsageError(
            f"the schema has the '$ref' {moved[0]!r:.80} beside 'propertyNames'; move what it means into"
            " $defs"
        )
    return translated


@dataclass
class _Whole:
    """The whole schema, how many keys may still be written out as properties, and where "$ref" leads."""

    schema: Any
    room: int = MAX_NAMED
    paths: list[str] = field(default_factory=list)


def _translate(schema: Any, whole: _Whole, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return schema
    if (never := schema.get("not")) is True or never == {}:
        return False
    words = {keyword: value for keyword, value in schema.items() if not is_note(keyword)}
    _rename(words, outermost=depth == 0)
    for keyword, value in words.items():
        if keyword in SCHEMA:
            words[keyword] = _translate(value, whole, depth + 1)
        elif keyword in SCHEMAS and isinstance(value, list):
            words[keyword] = [_translate(each, whole, depth + 1) for each in value]
        elif keyword in NAMED_SCHEMAS and isinstance(value, dict):
            words[keyword] = {name: _translate(each, whole, depth + 1) for name, each in value.items()}
    _name_properties(words, whole)
    if isinstance(path := words.get("$ref"), str):
        path = re.sub(r"/items(?=/\d+(?:/|$))", "/prefixItems", path)
        words["$ref"] = path = re.sub(r"/additionalItems(?=/|$)", "/items", path)
        whole.paths.append(path)
    if isinstance(pattern := words.get("pattern"), str):
        words["pattern"] = _PATTERNS.get(pattern, pattern)
    return words


def _rename(words: dict[str, Any], *, outermost: bool) -> None:
    """Bring what drafts 4 to 2019-09 say otherwise to its present name, in place."""
    if outermost and isinstance(words.get("id"), str) and "$id" not in words:
        words["$id"] = words.pop("id")
    listed = isinstance(words.get("items"), list)
    if listed and "prefixItems" not in words:
        words["prefixItems"] = words.pop("items")
    more = words.pop("additionalItems", None)  # which says something only beside a list
    if listed and more is not None:
        words["items"] = more
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(words.get(exclusive), bool) and words.pop(exclusive) and limit in words:
            words[exclusive] = words.pop(limit)


def _name_properties(words: dict[str, Any], whole: _Whole) -> None:
    """Write a rule for the keys of an object as its properties, in place: an enum, or a pattern."""
    names = words.get("propertyNames")
    if not isinstance(names, dict) or names in EMPTY["propertyNames"]:
        return
    path = names.get("$ref")
    if isinstance(path, str) and len(names) == 1 and isinstance(whole.schema, dict):  # pydantic's, of an Enum
        place, _, name = path.removeprefix("#/").partition("/")
        found = whole.schema.get(place)
        names = found.get(name) if place in ("$defs", "definitions") and isinstance(found, dict) else None
    if not isinstance(names, dict):
        return
    rule = {keyword: value for keyword, value in names.items() if not is_note(keyword)}
    if rule.get("type") == "string":
        del rule["type"]
    if len(rule) != 1 or {"properties", "patternProperties"} & words.keys():
        return
    ((keyword, value),) = rule.items()
    keys = [value] if keyword == "const" else value
    values = words.get("additionalProperties", True)
    if keyword in ("const", "enum") and isinstance(keys, list) and all(isinstance(key, str) for key in keys):
        whole.room -= max(1, len(keys))
        if whole.room < 0:
            raise UsageError(f"the schema lists more than {MAX_NAMED:,} keys in 'propertyNames'; use fewer")
        words["properties"] = dict.fromkeys(keys, values)
    elif keyword == "pattern" and isinstance(value, str):
        whole.room -= 1
        words["patternProperties"] = {value: values}
    else:
        return
    words["additionalProperties"] = False
    del words["propertyNames"]
