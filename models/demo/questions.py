"""Questions about scenes that have exactly one answer."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drawing import COLOUR_NAMES, SHAPES, Scene, Thing
from phrases import (
    COLOUR,
    COUNT,
    COUNT_ALL,
    HIGHEST,
    JSON,
    MORE,
    NUMBER,
    ORDINALS,
    POSITION,
    RELATIONS,
    SHAPE,
    SIGN,
    VALUE,
    WHICH,
    WORD,
    Templates,
)
from turns import Task, Turn

# Two centres must differ by this many pixels along an axis for one thing to be left of, right of, above or
# below the other; nothing is asked about directions in which some thing is nearer to the middle than that.
CLEAR_OFFSET = 12


@dataclass(frozen=True)
class Asked:
    """A turn and what it asks for: a kind and its arguments, equal for two phrasings of one question."""

    turn: Turn
    subject: tuple[str | int, ...]


Scenes = Sequence[Scene]


def ask(scenes: Scenes, task: Task, rng: random.Random) -> Asked | None:
    """Ask a question of a task (any but follow_up); None where the choice has no single answer."""
    return _ASKERS[task](scenes, rng)


def phrase(rng: random.Random, task: Task, templates: Templates, key: str, **words: str) -> Turn:
    """Word a turn after one of the templates."""
    question, answer = rng.choice(templates)
    return Turn(task, question.format(**words), answer.format(key=key, **words), key)


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return shape + ("es" if shape == "cross" else "s")


def described(thing: Thing) -> str:
    """Name a thing by colour and shape, with its article."""
    return f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape}"


def is_only(things: Sequence[Thing], index: int, by: str) -> bool:
    """Tell whether no other thing shares the attribute (shape, colour)."""
    return counted(things, by, getattr(things[index], by)) == 1


def _by_shape(things: Sequence[Thing], rng: random.Random) -> tuple[int, str] | None:
    found = [i for i in range(len(things)) if is_only(things, i, "shape")]
    if not found:
        return None
    index = rng.choice(found)
    return index, things[index].shape


def _by_colour(things: Sequence[Thing], rng: random.Random) -> tuple[int, str] | None:
    found = [i for i in range(len(things)) if is_only(things, i, "colour")]
    if not found:
        return None
    index = rng.choice(found)
    return index, f"{things[index].colour} {rng.choice(('object', 'object', 'thing'))}"


def references(things: Sequence[Thing], index: int) -> list[str]:
    """All names that fit one thing only."""
    thing = things[index]
    names = [thing.shape] * 2 if is_only(things, index, "shape") else []
    if is_only(things, index, "colour"):
        names.append(f"{thing.colour} object")
    if sum((t.shape, t.colour) == (thing.shape, thing.colour) for t in things) == 1:
        names.append(f"{thing.colour} {thing.shape}")
    return names


def neighbour(things: Sequence[Thing], index: int, direction: str) -> int | None:
    """Return the index of the only thing in a direction from another; -1: nothing; None: not clear."""
    here = things[index]
    sign = -1 if direction in ("left", "above") else 1
    inside = []
    for i, thing in enumerate(things):
        if i == index:
            continue
        offset = thing.x - here.x if direction in ("left", "right") else thing.y - here.y
        if abs(offset) < CLEAR_OFFSET:
            return None
        if sign * offset > 0:
            inside.append(i)
    if len(inside) > 1:
        return None
    return inside[0] if inside else -1


def _ask_colour(scenes: Scenes, rng: random.Random) -> Asked | None:
    things = scenes[0].things
    found = _by_shape(things, rng)
    if found is None:
        return None
    index, ref = found
    if len(things) == 1 and rng.random() < 0.3:
        ref = rng.choice(("shape", "object"))
    return Asked(phrase(rng, "colour", COLOUR, things[index].colour, ref=ref), ("colour", index))


def _ask_shape(scenes: Scenes, rng: random.Random) -> Asked | None:
    things = scenes[0].things
    found = _by_colour(things, rng)
    if found is None:
        return None
    index, ref = found
    if len(things) == 1 and rng.random() < 0.3:
        ref = "object"
    return Asked(phrase(rng, "shape", SHAPE, things[index].shape, ref=ref), ("shape", index))


def counted(things: Sequence[Thing], kind: str, name: str) -> int:
    """Count the things of a shape or colour, or ("all") every thing."""
    return sum(kind == "all" or getattr(thing, kind) == name for thing in things)


def count_words(kind: str, name: str, count: int) -> dict[str, str]:
    """Return the words of a template that counts: plural, the noun after the number, is or are."""
    if kind == "shape":
        one, many = name, plural(name)
    elif kind == "colour":
        one, many = f"{name} object", f"{name} objects"
    else:
        one, many = "shape", "shapes"
    return {"plural": many, "noun": one if count == 1 else many, "be": "is" if count == 1 else "are"}


def count_name(things: Sequence[Thing], kind: str, rng: random.Random) -> str:
    """Choose a shape or colour to count, mostly one that is there."""
    if kind == "all":
        return ""
    present = [str(getattr(thing, kind)) for thing in things]
    if rng.random() < 0.2:
        names = SHAPES if kind == "shape" else COLOUR_NAMES
        return rng.choice([name for name in names if name not in present])
    return rng.choice(present)


def _ask_count(scenes: Scenes, rng: random.Random) -> Asked | None:
    things = scenes[0].things
    kind = rng.choices(("shape", "colour", "all"), (4, 3, 3))[0]
    name = count_name(things, kind, rng)
    count = counted(things, kind, name)
    templates = COUNT_ALL if kind == "all" else COUNT
    turn = phrase(rng, "count", templates, str(count), **count_words(kind, name, count))
    return Asked(turn, ("count", kind, name))


def _ask_position(scenes: Scenes, rng: random.Random) -> Asked | None:
    things = scenes[0].things
    clear: list[tuple[int, str, int]] = []
    empty: list[tuple[int, str, int]] = []
    for index in range(len(things)):
        for direction in RELATIONS:
            other = neighbour(things, index, direction)
            if other is not None and references(things, index):
                (empty if other < 0 else clear).append((index, direction, other))
    pool = empty if empty and (not clear or rng.random() < 0.1) else clear
    if not pool or len(things) == 1:
        return None
    index, direction, other = rng.choice(pool)
    words = {"ref": rng.choice(references(things, index)), "rel": rng.choice(RELATIONS[direction])}
    key, what = answer_thing(things, other)
    turn = phrase(rng, "position", POSITION, key, what=what, What=what[0].upper() + what[1:], **words)
    return Asked(turn, ("position", index, direction))


def answer_thing(things: Sequence[Thing], other: int) -> tuple[str, str]:
    """Key and wording of a thing that answers a question; -1 is nothing."""
    if other < 0:
        return "nothing", "nothing"
    return f"{things[other].colour} {things[other].shape}", described(things[other])


def json_key(thing: Thing) -> str:
    """Write a thing as the JSON text that answers give."""
    return json.dumps({"shape": thing.shape, "colour": thing.colour})


def _ask_json(scenes: Scenes, rng: random.Random) -> Asked | None:
    things = scenes[0].things
    found = (_by_shape if rng.random() < 0.6 else _by_colour)(things, rng)
    if found is None:
        return None
    index, ref = found
    if len(things) == 1 and rng.random() < 0.3:
        ref = "object"
    return Asked(phrase(rng, "json", JSON, json_key(things[index]), ref=ref), ("json", index))


def _ask_row(task: Task, scenes: Scenes, rng: random.Random) -> Asked | None:
    rows = scenes[0].rows
    texts = [row.text for row in rows if row.text.isdecimal() == (task == "number")]
    if not texts:
        return None
    templates = NUMBER if task == "number" else WORD
    if len(rows) == 1:
        templates += SIGN
    return Asked(phrase(rng, task, templates, texts[0]), (task,))


def _ask_word(scenes: Scenes, rng: random.Random) -> Asked | None:
    return _ask_row("word", scenes, rng)


def _ask_number(scenes: Scenes, rng: random.Random) -> Asked | None:
    return _ask_row("number", scenes, rng)


def highest(scene: Scene) -> int:
    """Return the index of a chart's highest bar."""
    return max(range(len(scene.bars)), key=lambda i: scene.bars[i].value)


def _ask_highest(scenes: Scenes, rng: random.Random) -> Asked | None:
    bar = scenes[0].bars[highest(scenes[0])]
    return Asked(phrase(rng, "highest_bar", HIGHEST, bar.colour), ("highest",))


def _ask_value(scenes: Scenes, rng: random.Random) -> Asked | None:
    index = rng.randrange(len(scenes[0].bars))
    bar = scenes[0].bars[index]
    return Asked(phrase(rng, "bar_value", VALUE, str(bar.value), ref=bar.colour), ("value", index))


def _ask_two(scenes: Scenes, rng: random.Random) -> Asked | None:
    sides = [(side, thing) for side, scene in enumerate(scenes) for thing in scene.things]
    kind = rng.choices(("which", "more", "colour", "shape"), (5, 1, 2, 2))[0]
    if kind == "more":
        counts = [len(scene.things) for scene in scenes]
        if counts[0] == counts[1]:
            return None
        key = ORDINALS[counts.index(max(counts))]
        return Asked(phrase(rng, "two_pictures", MORE, key), ("more",))
    if kind == "which":
        every = [thing for _, thing in sides]
        index = rng.randrange(len(every))
        names = references(every, index)
        if not names:
            return None
        ref = rng.choice(names)
        turn = phrase(rng, "two_pictures", WHICH, ORDINALS[sides[index][0]], ref=ref)
        return Asked(turn, ("which", index))
    side = rng.randrange(2)
    return _ask_in(scenes, side, kind, rng)


def _ask_in(scenes: Scenes, side: int, kind: str, rng: random.Random) -> Asked | None:
    things = scenes[side].things
    found = (_by_shape if kind == "colour" else _by_colour)(things, rng)
    if found is None:
        return None
    index, name = found
    where = f"{name} in the {ORDINALS[side]} picture"
    key = str(getattr(things[index], kind))
    templates = COLOUR if kind == "colour" else SHAPE
    turn = phrase(rng, "two_pictures", templates, key, ref=where)
    return Asked(turn, (kind + " in", side, index))


_ASKERS: dict[Task, Callable[[Scenes, random.Random], Asked | None]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "position": _ask_position,
    "word": _ask_word,
    "number": _ask_number,
    "highest_bar": _ask_highest,
    "bar_value": _ask_value,
    "two_pictures": _ask_two,
    "json": _ask_json,
}
