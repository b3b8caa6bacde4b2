"""Random JSON schemas of every keyword that pixedge holds answers to."""

from hypothesis import strategies as st

from pixedge.json_schema import FORMATS

NAMES = st.sampled_from(["a", "b", "total", "é", 'say "x"', "a/b", "x y"])
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=6)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), _TEXT)
_NOTES = st.fixed_dictionaries({}, optional={"title": _TEXT, "description": _TEXT, "default": _SCALARS})


def _between(low: int, high: int, least: str, most: str) -> st.SearchStrategy[dict]:
    pair = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    return st.one_of(
        st.just({}),
        pair.map(lambda p: {least: p[0]}),
        pair.map(lambda p: {most: p[1]}),
        pair.map(lambda p: {least: p[0], most: p[1]}),
    )


def _join(*parts: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    return st.tuples(*parts).map(lambda dicts: {key: value for each in dicts for key, value in each.items()})


_STRINGS = st.one_of(
    _join(st.just({"type": "string"}), _between(0, 12, "minLength", "maxLength")),
    st.sampled_from(["^[a-z]+$", "[0-9]{2}", "^(x|yy)*$", "é$", "^A", r"\d-\d", "^[^a-z]{1,9}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from(sorted(FORMATS)).map(lambda kind: {"type": "string", "format": kind}),
)
_NUMBERS = st.one_of(
    _join(st.just({"type": "integer"}), _between(-99, 9999, "minimum", "maximum")),
    _join(st.just({"type": "number"}), _between(-99, 9999, "minimum", "maximum")),
    st.integers(-50, 50).map(lambda n: {"type": "number", "exclusiveMinimum": n, "exclusiveMaximum": n + 3}),
    st.integers(1, 20).map(lambda n: {"type": "integer", "multipleOf": n}),
    st.tuples(st.integers(-50, 0), st.integers(1, 50)).map(
        lambda p: {"type": "integer", "exclusiveMinimum": p[0], "exclusiveMaximum": p[1] + 1}
    ),
)
_LEAVES = st.one_of(
    _STRINGS,
    _NUMBERS,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {}, True]),
    st.lists(_SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    _SCALARS.map(lambda value: {"const": value}),
)


@st.composite
def _objects(draw, inner) -> dict:
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    schema = {"type": "object", "properties": {name: draw(inner) for name in names}}
    if names:
        schema["required"] = draw(st.lists(st.sampled_from(names), unique=True))
    schema |= draw(
        st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}])
    )
    if draw(st.integers(0, 4)) == 0:
        schema["patternProperties"] = {"^p_[a-z]$": draw(inner)}
    if draw(st.integers(0, 4)) == 0:
        schema["maxProperties"] = len(schema.get("required", ())) + draw(st.integers(0, 3))
    if draw(st.integers(0, 4)) == 0:
        schema["minProperties"] = 1
    return schema


def _containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    arrays = st.one_of(
        _join(
            inner.map(lambda each: {"type": "array", "items": each}), _between(0, 4, "minItems", "maxItems")
        ),
        st.tuples(st.lists(inner, min_size=1, max_size=3), st.sampled_from([False, {"type": "integer"}])).map(
            lambda p: {"type": "array", "prefixItems": p[0], "items": p[1]}
        ),
    )
    choices = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        _objects(inner),
        _objects(inner),
        arrays,
        choices.map(lambda each: {"anyOf": each}),
        choices.map(lambda each: {"oneOf": each}),
        st.lists(inner, min_size=1, max_size=2).map(lambda each: {"allOf": each}),
    )


_TREES = st.recursive(_LEAVES, _containers, max_leaves=8)


@st.composite
def schemas(draw) -> dict | bool:
    """Give a schema, perhaps one that nothing can meet, perhaps one that refers to parts of itself."""
    schema = draw(_TREES)
    if isinstance(schema, dict) and draw(st.integers(0, 3)) == 0:
        link = {"type": "object", "properties": {"next": {"$ref": "#/$defs/link"}, "at": draw(_LEAVES)}}
        schema = {"$defs": {"link": link}, "anyOf": [schema, {"$ref": "#/$defs/link"}]}
    return schema
