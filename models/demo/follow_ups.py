"""Questions that only make sense after the turn before them."""

import random
from collections.abc import Sequence

import questions as q
from drawing import Scene, Thing
from phrases import ORDINALS, RELATIONS, SIDE_WORDS, Templates
from questions import Asked
from turns import Turn

OTHER_COLOUR: Templates = (
    ("And the {ref}?", "The {ref} is {key}."),
    ("And what about the {ref}?", "The {ref} is {key}."),
    ("What about the {ref}?", "The {ref} is {key}."),
    ("And that of the {ref}?", "It is {key}."),
    ("Now the {ref}, please.", "It is {key}."),
)
OTHER_SHAPE: Templates = tuple(
    (question, answer.replace("{key}", "a {key}")) for question, answer in OTHER_COLOUR
)
OTHER_JSON: Templates = tuple((question, "{key}") for question, _ in OTHER_COLOUR)
OTHER_COUNT: Templates = (
    ("And how many {plural}?", "There {be} {key} {noun}."),
    ("And {plural}?", "There {be} {key} {noun}."),
    ("What about {plural}?", "There {be} {key} {noun}."),
    ("And how many {plural} do you see?", "I see {key} {noun}."),
    ("Now count the {plural}.", "There {be} {key} {noun}."),
)
SIDE: Templates = (
    ("And what is {side}?", "{What}."),
    ("And {side}?", "{What}."),
    ("What about {side}?", "{What}."),
    ("And what do you see {side}?", "I see {what}."),
    ("Now tell me what is {side}.", "There is {what}."),
)
SIDE_COLOUR: Templates = (
    ("And what colour is the thing {side}?", "It is {key}."),
    ("What colour is the thing {side}?", "It is {key}."),
    ("And the colour of the thing {side}?", "It is {key}."),
    ("What colour is the object {side}?", "It is {key}."),
    ("And which colour has the object {side}?", "It is {key}."),
)
SIDE_SHAPE: Templates = (
    ("And what shape is the thing {side}?", "It is a {key}."),
    ("What shape is the thing {side}?", "It is a {key}."),
    ("And the shape of the thing {side}?", "It is a {key}."),
    ("What shape is the object {side}?", "It is a {key}."),
    ("And which shape has the object {side}?", "It is a {key}."),
)
OTHER_VALUE: Templates = (
    ("And the {ref} bar?", "The {ref} bar is at {key}."),
    ("And the {ref} one?", "The {ref} bar is at {key}."),
    ("What about the {ref} bar?", "The {ref} bar is at {key}."),
    ("And what about the {ref} one?", "The {ref} bar is at {key}."),
    ("Now the {ref} one, please.", "It is at {key}."),
)
ITS_VALUE: Templates = (
    ("What is its value?", "It is at {key}."),
    ("And what is its value?", "It is at {key}."),
    ("And how high is it?", "It is at {key}."),
    ("At what value is it?", "It is at {key}."),
    ("What value does it have?", "It is at {key}."),
)
OTHER_WORD: Templates = (
    ("And the word?", 'The word is "{key}".'),
    ("And what is the word?", 'The word is "{key}".'),
    ("What about the word?", 'The word is "{key}".'),
    ("And the word, please?", 'The word is "{key}".'),
    ("Now the word.", 'The word is "{key}".'),
)
OTHER_NUMBER: Templates = tuple(
    (question.replace("word", "number"), "The number is {key}.") for question, _ in OTHER_WORD
)
OTHER_PICTURE: Templates = (
    ("And the {ref}?", "The {key} picture."),
    ("And what about the {ref}?", "The {key} picture."),
    ("And which one has the {ref}?", "The {key} picture."),
    ("Which one shows the {ref}?", "The {key} picture."),
    ("What about the {ref}?", "The {key} picture."),
)


def follow(scenes: Sequence[Scene], before: Asked, rng: random.Random) -> Asked | None:
    """Ask on after a turn; None where the choice has no clear answer."""
    kind, *arguments = before.subject
    things = scenes[0].things
    if kind in ("colour", "shape", "json"):
        index = int(arguments[0])
        if len(things) > 1 and kind != "json" and rng.random() < 0.5:
            return _beside(things, index, str(kind), rng)
        return _another(things, index, str(kind), before.turn.question, rng)
    if kind == "count":
        return _count_on(things, str(arguments[0]), str(arguments[1]), rng)
    if kind == "position":
        return _other_side(things, int(arguments[0]), str(arguments[1]), rng)
    if kind in ("word", "number"):
        return _other_row(scenes[0], str(kind), rng)
    if kind == "value":
        return _bar(scenes[0], int(arguments[0]), rng)
    if kind == "highest":
        index = q.highest(scenes[0])
        return Asked(_turn(rng, ITS_VALUE, str(scenes[0].bars[index].value)), ("value", index))
    if kind == "which":
        return _which(scenes, int(arguments[0]), rng)
    if kind in ("colour in", "shape in"):
        return _in_picture(scenes, str(kind), (int(arguments[0]), int(arguments[1])), rng)
    return None


def _turn(rng: random.Random, templates: Templates, key: str, **words: str) -> Turn:
    return q.phrase(rng, "follow_up", templates, key, **words)


def _others(things: Sequence[Thing], index: int, by: str) -> list[int]:
    """Things other than one that an attribute names uniquely."""
    return [i for i in range(len(things)) if i != index and q.is_only(things, i, by)]


def _another(
    things: Sequence[Thing], index: int, kind: str, question: str, rng: random.Random
) -> Asked | None:
    # The thing is named by its shape unless the shape is asked for; after a JSON, as there.
    by = "colour" if kind == "shape" or (kind == "json" and " object" in question) else "shape"
    others = _others(things, index, by)
    if not others:
        return None
    other = rng.choice(others)
    thing = things[other]
    ref = thing.shape if by == "shape" else f"{thing.colour} one"
    if kind == "json":
        return Asked(_turn(rng, OTHER_JSON, q.json_key(thing), ref=ref), ("json", other))
    templates, key = (OTHER_COLOUR, thing.colour) if kind == "colour" else (OTHER_SHAPE, thing.shape)
    return Asked(_turn(rng, templates, key, ref=ref), (kind, other))


def _beside(things: Sequence[Thing], index: int, kind: str, rng: random.Random) -> Asked | None:
    """After a thing's colour or shape: the colour or shape of the only thing on one side of it."""
    clear = [(d, n) for d in RELATIONS if (n := q.neighbour(things, index, d)) is not None and n >= 0]
    if not clear:
        return None
    direction, other = rng.choice(clear)
    # A neighbour's shape or colour, whichever was asked before or not.
    asked = rng.choice(("colour", "shape"))
    templates, key = (
        (SIDE_COLOUR, things[other].colour) if asked == "colour" else (SIDE_SHAPE, things[other].shape)
    )
    turn = _turn(rng, templates, key, side=SIDE_WORDS[direction])
    return Asked(turn, (asked, other))


def _count_on(things: Sequence[Thing], kind: str, name: str, rng: random.Random) -> Asked | None:
    kind = rng.choice(("shape", "colour")) if kind == "all" else kind
    other = q.count_name(things, kind, rng)
    if other == name:
        return None
    count = q.counted(things, kind, other)
    turn = _turn(rng, OTHER_COUNT, str(count), **q.count_words(kind, other, count))
    return Asked(turn, ("count", kind, other))


def _other_side(things: Sequence[Thing], index: int, direction: str, rng: random.Random) -> Asked | None:
    sides = {d: n for d in RELATIONS if d != direction and (n := q.neighbour(things, index, d)) is not None}
    if not sides:
        return None
    filled = [d for d, n in sides.items() if n >= 0]
    side = rng.choice(filled if filled and rng.random() < 0.7 else list(sides))
    key, what = q.answer_thing(things, sides[side])
    words = {"side": SIDE_WORDS[side], "what": what, "What": what[0].upper() + what[1:]}
    return Asked(_turn(rng, SIDE, key, **words), ("position", index, side))


def _other_row(scene: Scene, kind: str, rng: random.Random) -> Asked | None:
    other = "number" if kind == "word" else "word"
    texts = [row.text for row in scene.rows if row.text.isdecimal() == (other == "number")]
    if not texts:
        return None
    return Asked(_turn(rng, OTHER_NUMBER if other == "number" else OTHER_WORD, texts[0]), (other,))


def _bar(scene: Scene, index: int, rng: random.Random) -> Asked:
    other = rng.choice([i for i in range(len(scene.bars)) if i != index])
    bar = scene.bars[other]
    return Asked(_turn(rng, OTHER_VALUE, str(bar.value), ref=bar.colour), ("value", other))


def _which(scenes: Sequence[Scene], index: int, rng: random.Random) -> Asked | None:
    every = [thing for scene in scenes for thing in scene.things]
    others = [i for i in range(len(every)) if i != index and q.references(every, i)]
    if not others:
        return None
    other = rng.choice(others)
    key = ORDINALS[other >= len(scenes[0].things)]
    ref = rng.choice(q.references(every, other))
    return Asked(_turn(rng, OTHER_PICTURE, key, ref=ref), ("which", other))


def _in_picture(scenes: Sequence[Scene], kind: str, at: tuple[int, int], rng: random.Random) -> Asked | None:
    side = rng.randrange(2)
    asked = kind.removesuffix(" in")
    by = "shape" if asked == "colour" else "colour"
    things = scenes[side].things
    found = [i for i in range(len(things)) if (side, i) != at and q.is_only(things, i, by)]
    if not found:
        return None
    index = rng.choice(found)
    thing = things[index]
    name = thing.shape if by == "shape" else f"{thing.colour} one"
    ref = f"{name} in the {ORDINALS[side]} picture"
    templates, key = (OTHER_COLOUR, thing.colour) if asked == "colour" else (OTHER_SHAPE, thing.shape)
    return Asked(_turn(rng, templates, key, ref=ref), (kind, side, index))
