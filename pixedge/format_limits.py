"""Bounds on the size and the repetition of formats, before llguidance reads them.

They hold what llguidance's own limits do not: recursion by rules and references, which can end the process,
and costs that grow faster than the format. Each stands far above formats in use (docs/constraints.md).
"""

import json
import re
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from pixedge.errors import UsageError
from pixedge.json_schema import subschemas

MAX_CHARACTERS = 100_000
"""The longest format; of a schema its notes, such as descriptions, do not count."""

MAX_WITH_NOTES = 1_000_000
"""The longest text of a schema."""

MAX_UNFOLDED = 100_000
"""Pieces of a regular expression, or of a grammar's rule, with every {n,m} written out."""

MAX_OPEN = 1_000
"""Pieces of a regular expression that may come more or less often: *, +, ?, {n,m}."""

MAX_SCHEMAS = 2_000
"""Schemas within a schema. References unfold to no more levels than that."""

MAX_LEAST = 100_000
"""The largest minItems, minLength and minProperties."""

MAX_MULTIPLE = 10_000
"""The product of all multipleOf of a schema, as integers without factors 2 and 5."""

MAX_RULES = 500
"""Rules and tokens of a grammar."""

_PIECES = re.compile(
    r"\\[pPx]\{[^{}]*\}|\\.|\((?:\?[^:()]*:)?|\)|\{(?P<low>\d*+)(?P<comma>,?)(?P<high>\d*+)\}|[*+?]|\[|.",
    re.DOTALL,
)
_CLASS_PIECES = re.compile(r"\\.|[\[\]]", re.DOTALL)
# Strings, comments and regular expressions of a grammar. One without an end goes to the end of its line: else
# the search would begin again at each of its marks, and take a time that is the square of its length.
LARK_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*+"?|//[^\n]*|/(?:\\.|[^/\\\n])++/?')
_JSON = re.compile(r"%(json|regex|llguidance)\s*")
_NAMES = re.compile(r"(\{ ?\d*+ ?,? ?\d*+ ?\})|[\w-]+|\[[^\]]{0,200}\]")
_DOTS = re.compile(r"~\s*(\d+)\s*(?:\.\.\s*(\d+))?")


def check_regex(regex: str, noun: str = "regular expression") -> None:
    """Refuse a regular expression that unfolds to too much; its syntax is for llguidance to check."""
    _, open_pieces = _unfold(regex, noun)
    if open_pieces > MAX_OPEN:
        raise UsageError(
            f"the {noun} repeats {open_pieces:,} pieces with *, +, ? or {{n,m}} and the limit is"
            f" {MAX_OPEN:,}; make it simpler"
        )


def _unfold(text: str, noun: str) -> tuple[int, int]:
    """Return how many pieces a regular expression has, repeats written out, and how many are repeated."""
    totals, last, open_pieces, at = [0], 0, 0, 0
    while piece := _PIECES.match(text, at):
        at, mark = piece.end(), piece[0]
        if mark[0] == "(":
            totals[-1] += last
            totals.append(0)
            last = 0
        elif mark == ")" and len(totals) > 1:
            last += totals.pop()
        elif mark in ("*", "+", "?"):
            open_pieces += 1
        elif piece["comma"] is not None and (piece["low"] or piece["high"]):
            last *= max(1, _integer(piece["low"]), _integer(piece["high"]))
            open_pieces += bool(piece["comma"])
        else:
            if mark == "[":
                at = _after_class(text, at)
            totals[-1] += last
            last = 1
        if totals[-1] + last > MAX_UNFOLDED:
            raise UsageError(
                f"the {noun} has more than {MAX_UNFOLDED:,} pieces when its repeats are written out; make the"
                " counts in {} smaller"
            )
    return sum(totals) + last, open_pieces


def _integer(digits: str) -> int:
    """Read a count; one of too many digits stands for more than any limit."""
    return int(digits or 0) if len(digits) < 10 else MAX_UNFOLDED + 1


def _after_class(text: str, at: int) -> int:
    """Return the place after a character class that began just before ``at``."""
    depth, at = 1, at + text[at : at + 1].count("]")  # a ] in the first place stands for itself
    while depth and (mark := _CLASS_PIECES.search(text, at)):
        at = mark.end()
        depth += {"[": 1, "]": -1}.get(mark[0], 0)
    return len(text) if depth else at


def check_schema_limits(schema: Any) -> None:
    """Refuse a schema that is too large, or that unfolds to too much.

    Raises UsageError, which names the keyword and the limit. A $ref may lead only to one of the schema's
    schemas, as nobody checks what stands elsewhere, such as in a default.
    """
    count, multiple = 0, 1
    places, anchors, references = set(), set(), []
    for place, each in subschemas(schema):
        count += 1
        if count > MAX_SCHEMAS:
            raise UsageError(f"the schema holds more than {MAX_SCHEMAS:,} schemas; make it smaller")
        places.add(place)
        if not isinstance(each, dict):
            continue
        anchors.add(each.get("$anchor") if isinstance(each.get("$anchor"), str) else None)
        if isinstance(each.get("$ref"), str):
            references.append((place, each["$ref"]))
        if place != "#" and "$id" in each:
            raise UsageError(f"the schema has an '$id' at {place}; only the outermost schema may have one")
        _check_counts(place, each)
        multiple *= _core(each.get("multipleOf"))
        if multiple > MAX_MULTIPLE:
            raise UsageError(
                f"the schema's 'multipleOf' at {place} brings the product of all of them above"
                f" {MAX_MULTIPLE:,}, factors 2 and 5 not counted; use smaller ones"
            )
    for place, reference in references:
        target = unquote(reference)
        if target.startswith("#") and target not in places and target[1:] not in anchors:
            raise UsageError(
                f"the schema has the '$ref' {reference[:80]!r} at {place}, where there is no schema; move"
                " what it means into $defs"
            )


def _check_counts(place: str, schema: dict[str, Any]) -> None:
    for keyword in ("minItems", "minLength", "minProperties"):
        least = schema.get(keyword)
        if isinstance(least, int | float) and least > MAX_LEAST:
            raise UsageError(
                f"the schema's {keyword!r} at {place} is above {MAX_LEAST:,}, which no answer holds; use less"
            )
    for keyword in ("required", "type"):  # whether they repeat takes long to find out among mixed values
        names = schema.get(keyword)
        if isinstance(names, list) and not all(isinstance(name, str) for name in names):
            raise UsageError(f"the schema is wrong in {keyword!r} at {place}: it lists what is not a string")
    patterns = schema.get("patternProperties")
    for pattern in [schema.get("pattern"), *(patterns if isinstance(patterns, dict) else ())]:
        if isinstance(pattern, str):
            check_regex(pattern, f"pattern at {place}")


def _core(multiple: Any) -> int:
    """Return a multipleOf as an integer without the factors 2 and 5, which cost nothing; 1 for none."""
    if not isinstance(multiple, int | float) or isinstance(multiple, bool) or not 0 < multiple < 1e300:
        return 1
    core = Fraction(str(multiple)).numerator
    for factor in (2, 5):
        while core % factor == 0:
            core //= factor
    return core


def check_lark(grammar: str) -> None:
    """Refuse a grammar with too many rules, or that unfolds to too much."""
    for literal in LARK_LITERALS.finditer(grammar):
        if literal[0][0] == "/" and literal[0][1] != "/":
            check_regex(literal[0][1:-1], "grammar's regular expression")
    bare = _without_json(grammar)
    rules = bare.count(":") - bare.count("::")
    if rules > MAX_RULES:
        raise UsageError(
            f"the grammar has {rules:,} rules and the limit is {MAX_RULES:,}; write it with fewer"
        )
    # A name is one piece, whatever it stands for. Rules one by one, as brackets end with theirs.
    for rule in re.split(r"\n(?=[^\n]*:)", _DOTS.sub(r"{\1,\2}", bare)):
        _unfold(
            _NAMES.sub(lambda found: found[1] or "a", re.sub(r"\s+", " ", rule)).replace(" ", ""), "grammar"
        )


def _without_json(grammar: str) -> str:
    """Check the grammar's schemas, and return it with them and all literals left out."""
    parts, at = [], 0
    bare = LARK_LITERALS.sub(lambda literal: "a" * len(literal[0]), grammar)
    while found := _JSON.search(bare, at):
        parts.append(bare[at : found.start()] + "a")
        at = found.end()
        try:
            value, at = json.JSONDecoder().raw_decode(grammar, at)
        except (ValueError, RecursionError):
            line = grammar.count("\n", 0, at) + 1
            raise UsageError(
                f"the grammar has %{found[1]} in line {line} and no JSON after it; give it an object"
            ) from None
        if found[1] == "json":
            check_schema_limits(value)
    return "".join([*parts, bare[at:]])
