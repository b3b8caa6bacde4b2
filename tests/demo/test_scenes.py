"""The demo's data: reproducible, legible, and every question has the one answer that it is given.

The truth of an answer is worked out here a second time, from the words of the question and the scene.
"""

import json
import random
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "models" / "demo"))

from drawing import CHARACTERS, COLOURS, FONTS, SHAPES, glyph
from labels import COUNTED, NOTHING
from scenes import TASKS, Turn, held_out, is_right, make_example

SIDE_WORDS = {"left": "left", "right": "right", "above": "above", "below": "below", "under": "below"}


def examples(seed, n, **options):
    rng = random.Random(seed)
    for _ in range(n):
        yield make_example(rng, (16 * rng.randint(4, 14), 16 * rng.randint(4, 14)), **options)


def mentioned(words, question):
    found = [word for word in words if re.search(rf"\b{word}(s|es)?\b", question)]
    assert len(found) <= 1, question
    return found[0] if found else None


def matching(things, question):
    """The things that the question's colour and shape fit."""
    shape, colour = mentioned(SHAPES, question), mentioned(COLOURS, question)
    return [t for t in things if shape in (None, t.shape) and colour in (None, t.colour)]


def only(things):
    assert len(things) == 1, things
    return things[0]


def beside(things, here, question):
    """The key of what is in the direction that the question names."""
    direction = SIDE_WORDS[mentioned(SIDE_WORDS, question)]
    axis = "x" if direction in ("left", "right") else "y"
    sign = 1 if direction in ("right", "below") else -1
    offsets = {id(t): sign * (getattr(t, axis) - getattr(here, axis)) for t in things if t is not here}
    assert all(abs(offset) >= 12 for offset in offsets.values()), "too close to call"
    found = [t for t in things if offsets.get(id(t), -1) > 0]
    if not found:
        return "nothing"
    other = only(found)
    return (
        other.colour
        if "colour" in question
        else other.shape
        if "shape" in question
        else f"{other.colour} {other.shape}"
    )


def sign(scene, number):
    return only([row.text for row in scene.rows if row.text.isdecimal() == number])


def described(thing):
    return json.dumps({"shape": thing.shape, "colour": thing.colour})


def truth(example, turn, before=None):
    """The key that the question's words and the scene lead to."""
    question, scene = turn.question, example.scenes[0]
    kind = before.task if before else turn.task
    if kind == "two_pictures":
        return truth_of_two(example.scenes, question, before)
    if kind in ("word", "number"):
        return sign(scene, (kind == "number") != (before is not None))
    if kind == "highest_bar":
        top = only([bar for bar in scene.bars if bar.value == max(b.value for b in scene.bars)])
        return str(top.value) if before else top.colour
    if kind == "bar_value":
        return str(only([b for b in scene.bars if b.colour == mentioned(COLOURS, question)]).value)
    if kind == "count":
        return str(len(matching(scene.things, question)))
    if before and (" it" in question):
        if mentioned(SIDE_WORDS, question):
            return beside(scene.things, only(matching(scene.things, before.question)), question)
        pytest.fail(f"unexpected follow-up {question!r}")
    thing = only(matching(scene.things, question))
    if kind == "position":
        return beside(scene.things, thing, question)
    return {"colour": thing.colour, "shape": thing.shape, "json": described(thing)}[kind]


def truth_of_two(scenes, question, before):
    counts = [len(matching(scene.things, question)) for scene in scenes]
    asked = before.question if before else question
    if "more" in question:
        assert counts[0] != counts[1]
        return "first" if counts[0] > counts[1] else "second"
    side = re.search(r"in the (first|second) picture", question)
    if side is None:
        assert sorted(counts) == [0, 1]
        return "first" if counts[0] else "second"
    thing = only(matching(scenes[side[1] == "second"].things, question))
    return thing.colour if re.search("colou?r", asked) else thing.shape


def test_same_seed_same_examples():
    state = random.getstate()
    for a, b in zip(examples(3, 40), examples(3, 40), strict=True):
        assert a.turns == b.turns and a.scenes == b.scenes and a.picture_first == b.picture_first
        assert [p.tobytes() for p in a.pictures] == [p.tobytes() for p in b.pictures]
        for x, y in zip(a.labels, b.labels, strict=True):
            assert all(np.array_equal(getattr(x, name), getattr(y, name)) for name in vars(x))
    assert random.getstate() == state


def test_every_answer_is_the_only_true_one():
    checked = dict.fromkeys(TASKS, 0)
    for example in examples(11, 1500):
        before = None
        for turn in example.turns:
            if turn.task != "follow_up":
                assert truth(example, turn) == turn.key, turn
                checked[turn.task] += 1
            elif before.task != "follow_up":  # what "it" is after two follow-ups is not worked out here
                assert truth(example, turn, before) == turn.key, (before, turn)
                checked[turn.task] += 1
            before = turn
    assert min(checked.values()) > 50, checked


def test_turns_of_an_example_differ():
    lengths = []
    for example in examples(5, 300):
        assert len({turn.question for turn in example.turns}) == len(example.turns) <= 5
        assert example.turns[0].task != "follow_up"
        lengths.append(len(example.turns))
    assert np.mean(lengths) > 3.5


def test_a_json_does_not_give_away_the_next_answer():
    for example in examples(7, 600, tasks=("json",)):
        thing = json.loads(example.turns[0].key)
        for turn in example.turns[1:]:
            if turn.task in ("colour", "shape"):
                fit = matching(example.scenes[0].things, turn.question)
                assert all((t.shape, t.colour) != (thing["shape"], thing["colour"]) for t in fit) or (
                    sum(
                        (t.shape, t.colour) == (thing["shape"], thing["colour"])
                        for t in example.scenes[0].things
                    )
                    > 1
                )


@pytest.mark.parametrize("task", TASKS)
def test_the_wanted_task_comes_first_and_a_follow_up_last(task):
    for n_turns in (1, 2, 5):
        for example in examples(f"{task} {n_turns}", 30, n_turns=n_turns, tasks=(task,)):
            if task == "follow_up":
                assert 2 <= len(example.turns) <= max(n_turns, 2)
                assert example.turns[-1].task == task and example.turns[0].task != task
            else:
                assert example.turns[0].task == task and len(example.turns) <= n_turns
            assert len(example.pictures) == (2 if task == "two_pictures" else len(example.scenes))


def test_held_out_cycles_through_the_tasks_at_any_size():
    found = list(held_out(2, 4 * len(TASKS)))
    assert [e.turns[-1].task for e in found] == list(TASKS) * 4
    assert [len(e.turns) for e in found] == [2 if t == "follow_up" else 1 for t in TASKS] * 4
    assert len({e.pictures[0].size for e in found}) > 30
    assert any(e.pictures[0].width % 16 for e in found) and any(e.labels[0].shape.size for e in found)
    assert [e.turns for e in held_out(2, 10)] == [e.turns for e in found[:10]]
    assert [e.turns for e in held_out(3, 10)] != [e.turns for e in found[:10]]


def test_labels_name_what_is_drawn():
    for example in examples(9, 200):
        for scene, picture, labels in zip(example.scenes, example.pictures, example.labels, strict=True):
            assert picture.mode == "RGB" and picture.size == (scene.width, scene.height)
            grid = (scene.height // 16, scene.width // 16)
            for name, top in (("shape", 6), ("colour", 8), ("character", 62), ("bar", 9)):
                label = getattr(labels, name)
                assert label.shape == grid and label.dtype == np.int64
                assert label.min() >= 0 and label.max() <= top
            things = {(SHAPES.index(t.shape) + 1, list(COLOURS).index(t.colour) + 1) for t in scene.things}
            bars = {(list(COLOURS).index(b.colour) + 1, b.value) for b in scene.bars}
            text = {CHARACTERS.index(c) + 1 for row in scene.rows for c in row.text}
            on = labels.shape > 0
            assert set(zip(labels.shape[on], labels.colour[on], strict=True)) == things
            on = labels.bar > 0
            assert set(zip(labels.colour[on], labels.bar[on], strict=True)) <= bars
            assert set(labels.character[labels.character > 0]) <= text
            assert bool(text) == bool(labels.character.any()) and bool(bars) == bool(labels.bar.any())
            for thing in scene.things:
                pixel = picture.getpixel((round(thing.x), round(thing.y)))
                nearest = min(
                    COLOURS, key=lambda c: sum((a - b) ** 2 for a, b in zip(pixel, COLOURS[c], strict=True))
                )
                assert nearest == thing.colour


def test_labels_tell_how_things_relate():
    """A thing's patches name its only neighbour on a side, or that there is none; ambiguity is ignored."""
    told = 0
    assert len(COUNTED) == len(SHAPES) + len(COLOURS)
    for example in (
        make_example(random.Random(i), (128, 112), tasks=("position", "count")) for i in range(200)
    ):
        things, labels = example.scenes[0].things, example.labels[0]
        assert not labels.counts[labels.shape == 0].any()
        for thing in things:
            patch = np.s_[int(thing.y) // 16, int(thing.x) // 16]
            if labels.shape[patch] != SHAPES.index(thing.shape) + 1:
                continue  # a neighbour covers more of this patch
            assert labels.same_shape[patch] == sum(t.shape == thing.shape for t in things)
            assert labels.same_colour[patch] == sum(t.colour == thing.colour for t in things)
            assert labels.all_things[patch] == len(things)
            counts = [1 + sum(getattr(t, kind) == name for t in things) for kind, name in COUNTED]
            assert labels.counts[patch].tolist() == counts
            left = [t for t in things if t.x < thing.x - 12]
            near = [t for t in things if t is not thing and abs(t.x - thing.x) <= 12]
            if near or len(left) > 1:
                continue
            expected = (
                list(COLOURS).index(left[0].colour) * len(SHAPES) + SHAPES.index(left[0].shape) + 1
                if left
                else NOTHING
            )
            assert labels.left[patch] == expected
            told += 1
    assert told > 100


def test_labels_cover_a_picture_that_is_no_whole_number_of_patches():
    example = make_example(random.Random(1), (117, 93))
    assert example.pictures[0].size == (117, 93)
    assert example.labels[0].shape.shape == example.labels[0].left.shape == (6, 8)


def test_bars_reach_their_value_and_do_not_touch():
    for example in examples(13, 150, tasks=("bar_value",)):
        scene = example.scenes[0]
        picture = np.asarray(example.pictures[0]).astype(int)
        assert scene.unit * 9 < scene.baseline and scene.bars[-1].left + scene.bars[-1].width <= scene.width
        for left, right in zip(scene.bars, scene.bars[1:], strict=False):
            assert left.left + left.width < right.left and left.width >= 10
        for bar in scene.bars:
            column = np.abs(picture[: scene.baseline, bar.left + bar.width // 2] - bar.rgb).sum(1) == 0
            assert column.sum() == bar.value * scene.unit


def test_signs_are_inside_the_picture_and_in_capitals():
    for example in examples(17, 300, tasks=("word", "number")):
        scene = example.scenes[0]
        for row in scene.rows:
            pen = row.left
            for character in row.text:
                g = glyph(row.font, row.height, character)
                assert pen + g.dx >= 0 and pen + g.dx + g.alpha.shape[1] <= scene.width
                assert row.baseline + g.dy >= 0
                assert row.baseline + g.dy + g.alpha.shape[0] <= scene.height
                pen += g.advance + row.spacing
            if not row.text.isdecimal():
                assert 3 <= len(row.text) <= 5 and row.text.isupper()


def test_each_font_draws_every_character_differently():
    seen = set()
    for font in FONTS:
        glyphs = {c: glyph(font, 20, c) for c in CHARACTERS}
        assert len({(g.alpha.tobytes(), g.dy) for g in glyphs.values()}) == len(CHARACTERS)
        assert 15 <= glyphs["H"].alpha.shape[0] <= 24
        seen.add(glyphs["A"].alpha.tobytes())
    assert len(seen) == len(FONTS) >= 4


def test_own_answers_are_right_and_answers_with_another_key_wrong():
    rng = random.Random(19)
    groups = {}
    for example in examples(19, 600):
        for turn in example.turns:
            assert is_right(turn, turn.answer), turn
            assert not is_right(turn, ""), turn
            # Only keys of one kind compete; a follow-up can be of any kind.
            kind = next((i for i, keys in enumerate((COLOURS, SHAPES)) if turn.key in keys), 2)
            if turn.task != "follow_up":
                groups.setdefault((turn.task, kind), []).append(turn)
    for turns in groups.values():
        for turn in turns:
            other = rng.choice(turns)
            if other.key != turn.key:
                assert not is_right(turn, other.answer), (turn, other)


COLOUR_TURN = Turn("colour", "What colour is the star?", "The star is red.", "red")
COUNT_TURN = Turn("count", "How many?", "There are 3 circles.", "3")
WORD_TURN = Turn("word", "What is the word?", 'The word is "BRIGHT".', "BRIGHT")
NUMBER_TURN = Turn("number", "What is the number?", "The number is 42.", "42")
PLACE_TURN = Turn("position", "What is left of the star?", "A red circle.", "red circle")
EMPTY_TURN = Turn("position", "What is left of the star?", "Nothing.", "nothing")
WHICH_TURN = Turn("two_pictures", "Which?", "The first picture.", "first")
JSON_TURN = Turn(
    "json", "As JSON.", '{"shape": "star", "colour": "red"}', '{"shape": "star", "colour": "red"}'
)


@pytest.mark.parametrize(
    ("turn", "reply", "right"),
    [
        (COLOUR_TURN, "Red", True),
        (COLOUR_TURN, "It is red or blue.", False),
        (COLOUR_TURN, "It is coloured.", False),
        (COUNT_TURN, "Three.", True),
        (COUNT_TURN, "There are 13 circles.", False),
        (COUNT_TURN, "3, no, 4", False),
        (WORD_TURN, "BRIGHT", True),
        (WORD_TURN, 'The word is "bright".', False),
        (WORD_TURN, 'The word is "BRIGHTER".', False),
        (WORD_TURN, 'It says "BRIGHT" or "LIGHT".', False),
        (NUMBER_TURN, 'It says "42".', True),
        (NUMBER_TURN, "The number is 4 2.", False),
        (PLACE_TURN, "There is a red circle.", True),
        (PLACE_TURN, "A circle.", False),
        (PLACE_TURN, "A red circle and a blue star.", False),
        (EMPTY_TURN, "There is nothing.", True),
        (EMPTY_TURN, "A red circle.", False),
        (WHICH_TURN, "the First one", True),
        (WHICH_TURN, "The first or the second.", False),
        (JSON_TURN, '{"colour":"red","shape":"star"}', True),
        (JSON_TURN, '{"shape": "star", "colour": "blue"}', False),
        (JSON_TURN, "A red star.", False),
    ],
)
def test_is_right(turn, reply, right):
    assert is_right(turn, reply) is right


@pytest.mark.slow  # a time says something on an idle machine only
def test_an_example_takes_a_few_milliseconds():
    list(examples(0, 200))  # renders the glyphs
    start = time.perf_counter()
    list(examples(1, 200))
    assert (time.perf_counter() - start) / 200 < 0.02  # 0.5 ms on an idle core
