"""Formats made to be expensive: each kind grows one thing that an engine has to unfold, chosen by a seed."""

import json
import random
from collections.abc import Callable
from typing import Any, Literal

Kind = Literal["schema", "regex", "lark"]

_ATOMS = [".", "a", "[a-z]", r"\w", r"\d", r"\p{L}", r"\p{Han}", "[^b]", "(?s:.)", r"\W", "(a|b)", "(?i)ß"]
_PRIMES = (3, 7, 11, 13, 97, 997, 991, 9973, 30011, 100003, 1000003, 99999989)


def hostile_format(seed: int) -> tuple[str, Kind, str]:
    """Return the name of a kind, the kind of format and its text; the same for the same seed."""
    rng = random.Random(seed)
    made = list(_MAKERS)[seed % len(_MAKERS)]
    kind, text = _MAKERS[made](rng)
    return made, kind, text if isinstance(text, str) else json.dumps(text)


def _size(rng: random.Random, most: int) -> int:
    """Draw a size from 1 to most, all magnitudes alike."""
    return max(1, round(most ** rng.random()))


def _repeat(rng: random.Random, most: int = 100_000) -> str:
    low = _size(rng, most)
    ends = [f"{{{low}}}", f"{{{low},}}", f"{{0,{low}}}", f"{{{low},{low * 2}}}", "*", "+", "?"]
    return rng.choice(ends)


# Regular expressions


def _many_of_one(rng: random.Random) -> str:
    return (rng.choice(_ATOMS) + rng.choice("*+?")) * _size(rng, 20_000)


def _many_of_all(rng: random.Random) -> str:
    count = _size(rng, 3_000)
    return "".join(rng.choice(_ATOMS) + rng.choice(["", "*", "+", "?"]) for _ in range(count))


def _nested_repeats(rng: random.Random) -> str:
    regex = rng.choice(_ATOMS)
    for _ in range(_size(rng, 60)):
        regex = f"({regex}{rng.choice(['', 'b', rng.choice(_ATOMS)])}){_repeat(rng, 2_000)}"
    return regex


def _doubling(rng: random.Random) -> str:
    return f"({rng.choice(['.*', '[ab]*', 'a?'])}a.{{{_size(rng, 3_000)}}}b?){_repeat(rng, 500)}"


def _groups(rng: random.Random) -> str:
    depth = _size(rng, 40_000)
    return "(" * depth + "a" + (")" + rng.choice(["", "*", "?", "b"])) * depth


def _alternatives(rng: random.Random) -> str:
    count = _size(rng, 15_000)
    end = rng.choice(["", ".*", "[a-z]{1,9}"])
    return f"({'|'.join(f'{i:x}{end}' for i in range(count))}){_repeat(rng, 500)}"


def _classes(rng: random.Random) -> str:
    count = _size(rng, 8_000)
    inner = "".join(chr(rng.randrange(0xA1, 0xD000)) for _ in range(count))
    nots = "".join(f"[^{c}]" for c in inner[: count // 4])
    return rng.choice([f"[{inner}]{_repeat(rng, 3_000)}", nots, f"(?i)({'|'.join(inner)}){_repeat(rng, 99)}"])


def _marks(rng: random.Random) -> str:
    return rng.choice(["(", "(?", "[", "a{1" + "1" * 9, "\\p{", "{,", "(?x", "[^"]) * _size(rng, 20_000)


def _digits(rng: random.Random) -> str:
    return f"{rng.choice(_ATOMS)}{{{'1' * _size(rng, 99_000)}{rng.choice(['', ',', '}', ',5}'])}"


# Schemas


def _reference_chain(rng: random.Random) -> Any:
    wrap = rng.choice(_WRAPS)
    count = _size(rng, 3_000)
    last = rng.choice([{"type": "string"}, {"$ref": "#/$defs/d0"}, {"type": "integer"}])
    definitions = {f"d{i}": wrap({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$defs": {**definitions, f"d{count}": last}, "$ref": "#/$defs/d0"}


def _reference_tree(rng: random.Random) -> Any:
    """Each definition holds the next one several times: what it unfolds to is exponential."""
    count, width = _size(rng, 200), rng.randint(2, 6)
    form = rng.choice(["anyOf", "allOf", "oneOf", "properties", "prefixItems"])

    def hold(place: int) -> Any:
        refs = [
            {"$ref": f"#/$defs/d{min(count, place + rng.randint(1, 2))}", "description": str(at)}
            for at in range(width)
        ]
        if form != "properties":
            return {form: refs}
        names = [f"p{at}" for at in range(width)]
        return {"properties": dict(zip(names, refs, strict=True)), "required": rng.choice([names, []])}

    definitions = {f"d{i}": hold(i) for i in range(count)}
    last = rng.choice([{"type": "string"}, {"type": "object", "properties": {"x": {}}}, {}])
    return {"$defs": {**definitions, f"d{count}": last}, "$ref": "#/$defs/d0"}


_WRAPS: list[Callable[[Any], Any]] = [
    lambda inner: {"type": "array", "items": inner},
    lambda inner: {"type": "array", "prefixItems": [inner, inner], "minItems": 2},
    lambda inner: {"type": "object", "properties": {"a": inner}, "required": ["a"]},
    lambda inner: {"anyOf": [inner, {"type": "null"}]},
    lambda inner: {"allOf": [inner, {"maxLength": 1000}]},
    lambda inner: {"additionalProperties": inner},
]


def _deep(rng: random.Random) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(_size(rng, 400)):
        schema = rng.choice(_WRAPS)(schema) if rng.random() < 0.8 else {"items": schema}
        if len(str(schema)) > 60_000:
            break
    return schema


def _counts(rng: random.Random) -> Any:
    def count() -> int:
        return rng.choice([_size(rng, 10**6), _size(rng, 10**4), 10**9, 2**31, 2**63])

    schema: Any = rng.choice([{"type": "string", "maxLength": count()}, {"type": "integer"}, {}])
    for _ in range(_size(rng, 12)):
        least = count()
        each = rng.choice(["minItems", "maxItems"])
        schema = {"type": "array", "items": schema, each: least, "prefixItems": [schema] * rng.randint(0, 3)}
        if rng.random() < 0.3:
            schema = {"type": "object", "properties": {"a": schema, "b": schema}, "minProperties": 1}
        if len(str(schema)) > 60_000:
            break
    return schema


def _strings(rng: random.Random) -> Any:
    schemas = [
        {"type": "string", "minLength": _size(rng, 5_000), "maxLength": 5_000 + _size(rng, 10**6)}
        for _ in range(_size(rng, 300))
    ]
    return rng.choice([{"anyOf": schemas}, {"allOf": schemas}, {"prefixItems": schemas, "minItems": 99}])


def _patterns(rng: random.Random) -> Any:
    makers = [_nested_repeats, _doubling, _many_of_all, _alternatives]
    patterns = [rng.choice(makers)(rng)[: _size(rng, 20_000)] for _ in range(_size(rng, 30))]
    if rng.random() < 0.3:
        return {"type": "object", "patternProperties": {p: {"type": "integer"} for p in patterns}}
    strings = [{"type": "string", "pattern": p, "maxLength": _size(rng, 10**5)} for p in patterns]
    return {rng.choice(["anyOf", "allOf", "prefixItems"]): strings}


def _any_of_patterns(rng: random.Random) -> Any:
    count = _size(rng, 200)
    few = [
        f"{rng.choice('abc^')}.*{rng.choice('xyz')}{rng.choice(['', '.*', '{1,9}', '$'])}"
        for _ in range(count)
    ]
    strings = [{"type": "string", "pattern": p} for p in few]
    return {rng.choice(["anyOf", "allOf"]): strings}


def _numbers(rng: random.Random) -> Any:
    def number() -> Any:
        found: dict[str, Any] = {"type": rng.choice(["integer", "number"])}
        if rng.random() < 0.6:
            found["multipleOf"] = rng.choice(_PRIMES) * rng.choice([1, 1, 10, 0.001, 0.5])
        if rng.random() < 0.5:
            found["minimum"] = rng.uniform(-1, 1) * 10 ** rng.randint(-15, 15)
        if rng.random() < 0.5:
            found["maximum"] = rng.uniform(1, 2) * 10 ** rng.randint(15, 18)
        return found

    numbers = [number() for _ in range(_size(rng, 500))]
    form = rng.choice(["anyOf", "allOf", "prefixItems", "properties"])
    if form == "properties":
        return {"properties": {f"n{at}": each for at, each in enumerate(numbers)}}
    return {form: numbers}


def _properties(rng: random.Random) -> Any:
    count = _size(rng, 6_000)
    value = rng.choice([{}, {"type": "string"}, {"type": "integer"}, {"type": "string", "format": "email"}])
    names = [f"p{at}" for at in range(count)]
    schema = {
        "type": "object",
        "properties": dict.fromkeys(names, value),
        "required": names[: rng.choice([0, count, count // 2])],
        "additionalProperties": rng.choice([True, False, {"type": "null"}]),
    }
    return rng.choice([schema, {"type": "array", "items": schema}, {"anyOf": [schema, {"type": "null"}]}])


def _any_of_objects(rng: random.Random) -> Any:
    width = rng.randint(1, 8)
    return {
        rng.choice(["anyOf", "oneOf"]): [
            {
                "type": "object",
                "properties": {f"p{at if rng.random() < 0.5 else 0}_{j}": {} for j in range(width)},
                "required": [f"p0_{j}" for j in range(width)] if rng.random() < 0.3 else [],
            }
            for at in range(_size(rng, 900))
        ]
    }


def _all_of_any(rng: random.Random) -> Any:
    wide, high = rng.randint(2, 12), _size(rng, 14)
    return {
        "allOf": [{"anyOf": [{"properties": {f"p{i}_{j}": {}}} for j in range(wide)]} for i in range(high)]
    }


def _values(rng: random.Random) -> Any:
    count = _size(rng, 9_000)
    value = rng.choice(
        [lambda at: at, str, lambda at: {"a": at, "b": [at]}, lambda at: "x" * (at % 97) + str(at)]
    )
    values = [value(at) for at in range(count)]
    return rng.choice([{"enum": values}, {"items": {"enum": values}, "minItems": 3}, {"const": values}])


def _lists(rng: random.Random) -> Any:
    count = _size(rng, 4_000)
    names = [name for at in range(count) for name in (at, f"a{at}", [at])]
    return {rng.choice(["required", "type", "enum", "examples"]): names}


# Grammars


def _rule_chain(rng: random.Random) -> str:
    count = _size(rng, 8_000)
    body = rng.choice(["r{}", '"x" r{}', "r{} | r{}", '(r{} "b")*', "r{}?"])
    rules = "\n".join(f"r{i}: {body.replace('{}', str(i + 1))}" for i in range(count))
    return f"start: r0\n{rules}\nr{count}: {rng.choice([chr(34) + 'a' + chr(34), 'r0', '/[a-z]+/'])}\n"


def _token_chain(rng: random.Random) -> str:
    count, width = _size(rng, 3_000), rng.randint(1, 9)
    rules = "\n".join(f"T{i}: {' '.join([f'T{i + 1}'] * width)}" for i in range(count))
    return f"start: T0\n{rules}\nT{count}: /{rng.choice(_ATOMS)}/"


def _rule_tree(rng: random.Random) -> str:
    count, width = _size(rng, 1_500), rng.randint(1, 9)
    join = rng.choice([" ", " | "])
    rules = "\n".join(f"r{i}: {join.join([f'r{i + 1}'] * width)}" for i in range(count))
    return f'start: r0\n{rules}\nr{count}: "a" | "b"'


def _rule_repeats(rng: random.Random) -> str:
    body = rng.choice(['"a"', "/[a-z]/", "/a*/", '"a" | "b"'])
    for _ in range(_size(rng, 25)):
        body = f"({body}{rng.choice(['', ' /x?/'])}){_repeat(rng, 50_000)}"
    return f"{rng.choice(['start: T' + chr(10) + 'T', 'start'])}: {body}"


def _ambiguous(rng: random.Random) -> str:
    names = [f"s{at}" for at in range(_size(rng, 300))]
    lines = []
    for name in names:
        forms = [
            " ".join(rng.choice(names) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 5))
        ]
        lines.append(
            f"{name}: {' | '.join(forms)} | {rng.choice(['', chr(34) + 'a' + chr(34), '/a*b?/', '/.*/'])}"
        )
    return "start: s0\n" + "\n".join(lines)


def _many_tokens(rng: random.Random) -> str:
    count = _size(rng, 2_000)
    form = rng.choice(["/[a-z]*{}[a-z]*/", "/.*{}.*/", "/(?s:.*){}/", '"{}" /a*/'])
    tokens = "\n".join(f"T{i}: {form.replace('{}', str(i))}" for i in range(count))
    return f"start: ({' | '.join(f'T{i}' for i in range(count))}){_repeat(rng, 100)}\n{tokens}"


def _and_not(rng: random.Random) -> str:
    parts = [
        f"{rng.choice(['', '~'])}/{rng.choice(['.*', '(?s:.*)'])}{rng.choice('abcd')}.{{{_size(rng, 300)}}}/"
        for _ in range(_size(rng, 80))
    ]
    return f"start: A\nA: {rng.choice([' & ', ' | ', ' ']).join(parts)}"


def _substrings(rng: random.Random) -> str:
    text = "".join(rng.choice("abc ") for _ in range(_size(rng, 80_000)))
    value = json.dumps({f"substring_{rng.choice(['chars', 'words'])}": text})
    return f'start: (S | "x"){_repeat(rng, 50)}\nS: %regex {value}'


def _nested_schema(rng: random.Random) -> str:
    makers = [_reference_chain, _reference_tree, _numbers, _counts, _properties, _all_of_any, _deep]
    return f'start: (a | "x")*\na: %json {json.dumps(rng.choice(makers)(rng))}'


def _nested_grammar(rng: random.Random) -> str:
    depth = _size(rng, 3_000)
    return "start: " + "%lark { start: " * depth + '"a"' + " }" * depth


def _parameters(rng: random.Random) -> str:
    bits = rng.randint(1, 62)
    items = "".join(f'    | "{at:x}" perm::set_bit({at})  %if bit_clear({at})\n' for at in range(bits))
    return f'start: perm::0x0\nperm::_: "" %if is_ones([0:{bits}])\n{items}'


def _options(rng: random.Random) -> str:
    count = _size(rng, 400)
    attribute = rng.choice(["lazy", 'suffix="z"', "max_tokens=3", 'stop="q"', "capture"])
    rules = "\n".join(f"r{i}[{attribute}]: /[a-z]*{i}.*/" for i in range(count))
    return (
        f"%ignore /{rng.choice([' *', '.', '( |a)*', '[ ]+'])}/\n"
        f"start: {rng.choice([' ', ' | ']).join(f'r{i}' for i in range(count))}\n{rules}"
    )


def _no_end(rng: random.Random) -> str:
    mark = rng.choice(['"', "/", "[", "~", "{", "%json ", "<", "#", "//", "("])
    return f"start: {mark}" + rng.choice([f"\\{mark}", mark, f"a{mark}", "1", " ", "\n"]) * _size(rng, 45_000)


def _nonsense(rng: random.Random) -> str:
    pieces = [
        "start",
        ":",
        "a",
        "T",
        '"x"',
        "/a*/",
        "|",
        "(",
        ")",
        "*",
        "{9,}",
        "\n",
        "&",
        "~",
        "%json {}",
        "[",
        "]",
    ]
    pieces += [
        "%ignore",
        "<a>",
        "@b",
        "::",
        "_",
        "->",
        "..",
        "%import common.INT",
        ",",
        "=",
        "#",
        "//",
        "%lark {",
        "}",
    ]
    return "start: " + " ".join(rng.choice(pieces) for _ in range(_size(rng, 3_000)))


_MAKERS: dict[str, Callable[[random.Random], tuple[Kind, Any]]] = {}


def _add(kind: Kind, *makers: Callable[[random.Random], Any]) -> None:
    for maker in makers:
        name = f"{kind} {maker.__name__.strip('_').replace('_', ' ')}"
        _MAKERS[name] = lambda rng, maker=maker: (kind, maker(rng))  # type: ignore[misc]


_add("regex", _marks, _digits)
_add("schema", _lists)
_add("lark", _no_end)
_add("regex", _many_of_one, _many_of_all, _nested_repeats, _doubling, _groups, _alternatives, _classes)
_add("schema", _reference_chain, _reference_tree, _deep, _counts, _strings, _patterns, _any_of_patterns)
_add("schema", _numbers, _properties, _any_of_objects, _all_of_any, _values)
_add("lark", _rule_chain, _token_chain, _rule_tree, _rule_repeats, _ambiguous, _many_tokens, _and_not)
_add("lark", _substrings, _nested_schema, _nested_grammar, _parameters, _options, _nonsense)
