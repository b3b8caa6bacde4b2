"""A JSON schema brought to the form that llguidance holds answers to.

What only annotates is left out: formats that JSON Schema does not define (``file-path``, ``int64``), and
keywords with values that ask for nothing. What llguidance lacks is put in words that it has, each of them at
least as strict, so that an answer that fits the result fits the schema it was made from:

- ``oneOf`` of schemas that exclude each other, by their types or by a property with a fixed text (a tagged
  union, as pydantic writes it with ``discriminator``), becomes ``anyOf``; the property becomes required;
- pydantic's pattern of a Decimal, with look-ahead, becomes the decimal numbers that it is meant for.
"""

import re
from collections.abc import Callable
from itertools import combinations, islice
from typing import Any

STANDARD_FORMATS = frozenset(
    {
        *("date", "time", "date-time", "duration", "email", "idn-email", "hostname", "idn-hostname"),
        *("ipv4", "ipv6", "uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template"),
        *("json-pointer", "relative-json-pointer", "regex"),
    }
)
"""The values of "format" that draft 2020-12 defines; others are annotations."""

SCHEMA = frozenset({"items", "additionalProperties"})
SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})

# Keywords that llguidance has not, with the values that every answer meets.
EMPTY: dict[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "propertyNames": (True, {}, {"type": "string"}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
}

# Beyond these, comparing the schemas of a stranger with each other would take long.
_MOST_BRANCHES = 250
_MOST_PROPERTIES = 32
_MOST_DIGITS = 40

_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})
_DECIMAL = re.compile(r"\^\(\?!\^\[-\+\.\]\*\$\)\[\+-\]\?0\*(.*)", re.DOTALL)
_DIGITS = re.compile(
    r"\(\?:\\d\{0,(?P<whole>\d{1,2})\}\|\(\?=\[\\d\.\]\{1,(?P<most>\d{1,2})\}0\*\$\)"
    r"\\d(?:\{0,\d{1,2}\}|\*)\\\.\\d(?:\{0,(?P<places>\d{1,2})\}|\*)0\*\$\)"
)
_ANY_DIGITS = re.compile(r"\\d\*\\\.\?\\d(?:\*|\{0,\d{1,2}\}0\*)\$")


def hold(schema: Any) -> Any:
    """Give the schema that answers are held to; the one given is not changed."""
    return _hold(schema, lambda branch: _resolve(branch, schema))


def _hold(schema: Any, resolve: Callable[[Any], Any]) -> Any:
    if not isinstance(schema, dict):
        return schema
    held: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in SCHEMA:
            held[keyword] = _hold(value, resolve)
        elif keyword in SCHEMAS and isinstance(value, list):
            held[keyword] = [_hold(each, resolve) for each in value]
        elif keyword in NAMED_SCHEMAS and isinstance(value, dict):
            held[keyword] = {name: _hold(each, resolve) for name, each in value.items()}
        elif not (keyword in EMPTY or (keyword == "format" and value not in STANDARD_FORMATS)):
            held[keyword] = value
    more = [{"anyOf": held.pop("oneOf")}] if _tag(held, resolve) else []
    if "pattern" in held and (decimal := plain_pattern(held["pattern"])) is not None:
        held["pattern"] = decimal
        more.append({"type": "string", "pattern": "[0-9]"})
    if more and "anyOf" not in held and "anyOf" in more[0]:
        held |= more.pop(0)
    return held | {"allOf": [*held.get("allOf", ()), *more]} if more else held


def _tag(held: dict[str, Any], resolve: Callable[[Any], Any]) -> bool:
    """Say whether the schemas of "oneOf" exclude each other, and require the properties by which they do."""
    branches = held.get("oneOf")
    if not isinstance(branches, list) or len(branches) > _MOST_BRANCHES:
        return False
    found = [resolve(branch) for branch in branches]
    types, texts = [_types(each) for each in found], [_texts(each) for each in found]
    wanted: list[set[str]] = [set() for _ in branches]
    for one, other in combinations(range(len(branches)), 2):
        if not types[one] & types[other]:
            continue
        tags = [name for name, values in texts[one].items() if not values & texts[other].get(name, values)]
        if not types[one] == types[other] == {"object"} or not tags:
            return False
        wanted[one].add(tags[0])
        wanted[other].add(tags[0])
    for at, names in enumerate(wanted):
        if names and names - set(found[at].get("required", ())):
            branches[at] = {"allOf": [branches[at], {"required": sorted(names)}]}
    return True


def _types(schema: Any) -> frozenset[str]:
    """Give the types that a schema's values may have; integers are numbers."""
    if not isinstance(schema, dict):
        return _TYPES
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if isinstance(values, list) and all(value is None or isinstance(value, str) for value in values):
            return frozenset("null" if value is None else "string" for value in values)
    kinds = schema.get("type", list(_TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return frozenset("number" if kind == "integer" else str(kind) for kind in kinds)


def _texts(schema: Any) -> dict[str, set[str]]:
    """Give the first properties that have fixed texts, and these."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    found = {}
    for name, each in islice(properties.items(), _MOST_PROPERTIES) if isinstance(properties, dict) else ():
        if isinstance(each, dict):
            values = [each["const"]] if "const" in each else each.get("enum")
            if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
                found[name] = set(values)
    return found


def _resolve(branch: Any, schema: Any) -> Any:
    """Follow "$ref" as long as it stands alone and points into $defs or definitions."""
    for _ in range(8):
        path = branch.get("$ref") if isinstance(branch, dict) else None
        if not isinstance(path, str) or {"type", "properties", "const", "enum"} & set(branch):
            return branch
        place, _, name = path.removeprefix("#/").partition("/")
        branch = schema.get(place, {}).get(name) if place in ("$defs", "definitions") else None
    return None


def plain_pattern(pattern: object) -> str | None:
    """Write pydantic's pattern of a Decimal without look-ahead, None for any other.

    Texts of it must hold a digit besides, which is what its look-ahead at the beginning is for.
    """
    found = _DECIMAL.fullmatch(pattern) if isinstance(pattern, str) else None
    if found is None:
        return None
    body = found[1]
    if _ANY_DIGITS.fullmatch(body):
        return f"^[+-]?0*{body}"
    if (digits := _DIGITS.fullmatch(body)) is None or int(digits["most"]) > _MOST_DIGITS:
        return None
    # The look-ahead leaves room for so many digits and the point; zeros at the end do not count.
    room, whole = int(digits["most"]) - 1, int(digits["whole"])
    places = room if digits["places"] is None else int(digits["places"])
    numbers = (rf"\d{{{n}}}\.\d{{0,{min(places, room - n)}}}" for n in range(min(whole, room) + 1))
    return rf"^[+-]?0*(?:\d{{0,{whole}}}|(?:{'|'.join(numbers)})0*)$"
