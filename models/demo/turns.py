"""One question with its answer, and the judge of a reply."""

import json
import re
from dataclasses import dataclass
from typing import Literal, get_args

from drawing import COLOURS, SHAPES

Task = Literal[
    "colour",
    "shape",
    "count",
    "position",
    "word",
    "number",
    "highest_bar",
    "bar_value",
    "two_pictures",
    "follow_up",
    "json",
]
TASKS: tuple[Task, ...] = get_args(Task)

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COLOUR = "|".join(COLOURS)
_SHAPE = "|".join(SHAPES)


@dataclass(frozen=True)
class Turn:
    """A question and its answer, a short sentence; `key` is the part of the answer that must be right."""

    task: Task
    question: str
    answer: str
    key: str


def is_right(turn: Turn, reply: str) -> bool:
    """Tell whether a reply gives the turn's key and nothing that competes with it.

    Colours, shapes and ordinals are compared without case, words on a sign exactly; a number may be written
    in digits or, up to ten, in letters; a JSON reply must parse and equal the key.
    """
    key = turn.key
    if key.startswith("{"):
        try:
            return bool(json.loads(reply) == json.loads(key))
        except ValueError:
            return False
    if key.isdecimal():
        return _numbers(reply) == {key}
    if f'"{key}"' in turn.answer:
        quoted = re.findall(r'"([^"]*)"', reply)
        return set(quoted) == {key} if quoted else re.search(rf"\b{re.escape(key)}\b", reply) is not None
    text = reply.lower()
    if key == "nothing":
        return _found("nothing", text) == {"nothing"} and not _found(f"{_COLOUR}|{_SHAPE}", text)
    if " " in key:
        pairs = set(re.findall(rf"\b(?:{_COLOUR}) (?:{_SHAPE})s?\b", text))
        return pairs == {key} and not _found("nothing", text)
    if key in COLOURS:
        return _found(_COLOUR, text) == {key}
    if key in SHAPES:
        return _found(_SHAPE, text) == {key}
    return _found("first|second", text) == {key}


def _found(words: str, text: str) -> set[str]:
    return set(re.findall(rf"\b({words})(?:s|es)?\b", text))


def _numbers(reply: str) -> set[str]:
    digits = set(re.findall(r"\d+", reply))
    if digits:
        return digits
    return {str(_NUMBER_WORDS.index(word)) for word in _found("|".join(_NUMBER_WORDS), reply.lower())}
