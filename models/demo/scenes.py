"""The seeded data of the demo model: pictures of shapes, text and charts, with questions about them.

Everything follows from a random.Random: the same state gives the same pictures and turns.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from PIL import Image

from drawing import (
    CHARACTERS,
    COLOUR_NAMES,
    COLOURS,
    FONTS,
    SHAPES,
    Bar,
    Rgb,
    Row,
    Scene,
    Thing,
    draw,
    text_width,
)
from follow_ups import follow
from labels import PatchLabels, patch_labels
from questions import Asked, ask
from turns import TASKS, Task, Turn, is_right
from words import WORDS

__all__ = [
    "CHARACTERS",
    "COLOURS",
    "SHAPES",
    "TASKS",
    "Example",
    "PatchLabels",
    "Scene",
    "Task",
    "Turn",
    "held_out",
    "is_right",
    "make_example",
]

MIN_SIDE, MAX_SIDE = 64, 224

# Share of each kind of scene, and the tasks that it serves with their weights.
MIX: dict[str, float] = {"shapes": 0.42, "text": 0.30, "chart": 0.06, "two": 0.22}
SERVES: dict[str, dict[Task, float]] = {
    "shapes": {"colour": 0.6, "shape": 0.6, "count": 3.2, "position": 2.8, "json": 0.5, "follow_up": 1.2},
    "text": {"word": 1.6, "number": 0.8, "follow_up": 0.4},
    "chart": {"highest_bar": 0.8, "bar_value": 2.5, "follow_up": 0.7},
    "two": {"two_pictures": 3.0, "follow_up": 0.6},
}

LIGHT: tuple[Rgb, ...] = ((255, 255, 255), (228, 228, 230), (250, 245, 226), (228, 238, 250), (232, 246, 234))
DARK: tuple[Rgb, ...] = ((20, 24, 60), (16, 60, 36), (72, 18, 30), (36, 36, 40), (60, 24, 84))
DARK_INKS = ("black", "blue", "red", "green", "purple")
LIGHT_INKS: dict[str, Rgb] = {
    "": (250, 250, 248),
    "yellow": COLOURS["yellow"],
    "pink": COLOURS["pink"],
}
# Words of the answers themselves, and names that are keys of other questions.
RESERVED = frozenset({"the", "word", "says", "number", "nothing", "first", "second", *COLOURS, *SHAPES})


@dataclass(frozen=True)
class Example:
    """A conversation about one or two pictures of the same size.

    The pictures belong to the first turn, before its text where `picture_first` and after it otherwise; the
    later turns are text. `scenes` is what the pictures show.
    """

    pictures: tuple[Image.Image, ...]
    labels: tuple[PatchLabels, ...]
    turns: tuple[Turn, ...]
    picture_first: bool
    scenes: tuple[Scene, ...]


def make_example(
    rng: random.Random, size: tuple[int, int], n_turns: int = 5, tasks: Collection[Task] | None = None
) -> Example:
    """Draw a scene and ask up to `n_turns` different questions about it.

    `size` is (width, height) in pixels, 64 to 224 each; a scene about which less can be asked gives fewer
    turns. With `tasks` the first turn has one of them, except that a follow_up is the last turn and never
    the first, so that it takes at least two.
    """
    width, height = size
    assert MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE, f"unsupported size {size}"
    task = rng.choice(sorted(tasks)) if tasks else None
    kinds = [kind for kind in MIX if task is None or task in SERVES[kind]]
    kind = rng.choices(kinds, [MIX[k] for k in kinds])[0]
    while True:
        scenes = _make_scenes(rng, kind, width, height, task)
        turns = _make_turns(rng, kind, scenes, n_turns, task)
        if turns:
            break
    drawn = [draw(scene) for scene in scenes]
    return Example(
        pictures=tuple(picture for picture, _ in drawn),
        labels=tuple(patch_labels(scene, cover) for scene, (_, cover) in zip(scenes, drawn, strict=True)),
        turns=turns,
        picture_first=rng.random() < 0.65,
        scenes=scenes,
    )


def held_out(seed: int, n: int) -> Iterator[Example]:
    """Yield `n` examples of one question each (a follow_up: two turns), cycling through TASKS.

    Sizes vary per example, and half of them are not multiples of 16. Example i depends on `seed` and i only.
    """
    for i in range(n):
        rng = random.Random(f"held out {seed} {i}")
        if rng.random() < 0.5:
            size = (rng.randint(MIN_SIDE, MAX_SIDE), rng.randint(MIN_SIDE, MAX_SIDE))
        else:
            size = (16 * rng.randint(4, 14), 16 * rng.randint(4, 14))
        yield make_example(rng, size, n_turns=1, tasks=(TASKS[i % len(TASKS)],))


def _make_turns(
    rng: random.Random, kind: str, scenes: tuple[Scene, ...], n_turns: int, task: Task | None
) -> tuple[Turn, ...]:
    """Different questions about the scenes; empty where the scenes do not serve the task."""
    weights = SERVES[kind]
    plain: list[Task] = [t for t in weights if t != "follow_up"]
    asked: list[Asked] = []
    wanted = max(n_turns, 2) if task == "follow_up" else n_turns
    for _ in range(3 * wanted + 4):
        if len(asked) == wanted:
            break
        if task == "follow_up" and len(asked) == wanted - 1:
            choice: Task = "follow_up"
        elif not asked:
            choice = (
                task if task and task != "follow_up" else rng.choices(plain, [weights[t] for t in plain])[0]
            )
        else:
            choice = rng.choices(list(weights), list(weights.values()))[0]
        new = follow(scenes, asked[-1], rng) if choice == "follow_up" else ask(scenes, choice, rng)
        if new is not None and _is_new(new, asked):
            asked.append(new)
    if task == "follow_up" and (len(asked) < 2 or asked[-1].turn.task != "follow_up"):
        # A scene with little to ask: what there is must still end in a follow-up.
        new = follow(scenes, asked[-1], rng) if asked else None
        if new is None or not _is_new(new, asked):
            return ()
        asked.append(new)
    return tuple(a.turn for a in asked)


def _is_new(new: Asked, asked: list[Asked]) -> bool:
    # A JSON object gives away the colour and the shape of its thing.
    spoilt = new.subject[0] in ("colour", "shape") and ("json", *new.subject[1:]) in [
        a.subject for a in asked
    ]
    return not spoilt and all(
        a.subject != new.subject and a.turn.question != new.turn.question for a in asked
    )


def _make_scenes(
    rng: random.Random, kind: str, width: int, height: int, task: Task | None
) -> tuple[Scene, ...]:
    if kind == "text":
        return (_text(rng, width, height, task),)
    if kind == "chart":
        return (_chart(rng, width, height),)
    if kind == "two":
        return tuple(_shapes(rng, width, height, rng.randint(1, 2)) for _ in range(2))
    area = width * height
    most = 3 if area < 80 * 80 else 4 if area < 144 * 144 else 5
    if task == "position":
        count = rng.choices((2, 3), (6, 4))[0]
    else:
        count = min(most, rng.choices((1, 2, 3, 4, 5), (3, 6, 6, 5, 3))[0])
    return (_shapes(rng, width, height, count),)


def _jittered(rng: random.Random, rgb: Rgb, by: int = 10) -> Rgb:
    r, g, b = (min(255, max(0, channel + rng.randint(-by, by))) for channel in rgb)
    return r, g, b


def _shapes(rng: random.Random, width: int, height: int, count: int) -> Scene:
    """Things of free size and place that do not touch; fewer than `count` where no room is left."""
    shapes = rng.sample(SHAPES, rng.choice((2, 3))) if rng.random() < 0.35 else list(SHAPES)
    colours = rng.sample(COLOUR_NAMES, rng.choice((2, 3))) if rng.random() < 0.35 else list(COLOUR_NAMES)
    largest = max(26.0, min(44.0, 0.4 * min(width, height)))
    things: list[Thing] = []
    for _ in range(40 * count):
        if len(things) == count:
            break
        size = rng.uniform(18.0, largest)
        margin = 0.56 * size + 2
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if all(max(abs(x - t.x), abs(y - t.y)) > 0.55 * (size + t.size) + 3 for t in things):
            colour = rng.choice(colours)
            rgb = _jittered(rng, COLOURS[colour])
            things.append(Thing(rng.choice(shapes), colour, rgb, x, y, size))
    return Scene(width, height, _jittered(rng, rng.choice(LIGHT), 5), things=tuple(things))


def _letters(rng: random.Random, most: int) -> str:
    """Draw a word of 3 to `most` capital letters."""
    while True:
        if rng.random() < 0.5:
            word = rng.choice(WORDS)
        else:
            word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 5)))
        if len(word) <= most and word not in RESERVED:
            return word.upper()


def _digits(rng: random.Random) -> str:
    length = rng.choices((1, 2, 3, 4), (2, 3, 3, 2))[0]
    return str(rng.randint(10 ** (length - 1) if length > 1 else 0, 10**length - 1))


def _text(rng: random.Random, width: int, height: int, task: Task | None) -> Scene:
    """Make a sign with a word, a number or both on rows of their own."""
    has = rng.choices(("both", "word", "number"), (6, 3, 1))[0]
    if task in ("word", "number") and has != "both":
        has = task
    if task == "follow_up":
        has = "both"
    kinds = ["word", "number"] if has == "both" else [has]
    rng.shuffle(kinds)
    dark = rng.random() < 0.2
    ground = _jittered(rng, rng.choice(DARK if dark else LIGHT), 5)
    band = height // len(kinds)
    rows = tuple(_row(rng, kind, width, i * band, band, dark) for i, kind in enumerate(kinds))
    frame = _jittered(rng, (200, 200, 200) if dark else (110, 110, 120)) if rng.random() < 0.25 else None
    return Scene(width, height, ground, rows=rows, frame=frame)


def _row(rng: random.Random, kind: str, width: int, top: int, band: int, dark: bool) -> Row:
    """Make a row inside `band` pixels from `top`; its letters shrink, and the text too, until it fits."""
    font = rng.choice(list(FONTS))
    height = min(rng.randint(16, 34), int(0.6 * band))
    spacing = rng.choice((0, 0, 1, 2))
    most = 5
    text = _letters(rng, most) if kind == "word" else _digits(rng)
    room = width - 8
    while text_width(text, font, height, spacing) > room:
        if height > 14:
            height -= 2
        elif spacing:
            spacing = 0
        else:
            most = max(3, most - 1)
            font = "aileron" if most == 3 else font
            text = _letters(rng, most) if kind == "word" else text[:-1]
    if dark:
        colour = rng.choice(list(LIGHT_INKS))
        rgb = _jittered(rng, LIGHT_INKS[colour], 5)
    else:
        colour = rng.choice(DARK_INKS)
        rgb = _jittered(rng, COLOURS[colour])
    left = 4 + rng.randint(0, room - text_width(text, font, height, spacing))
    # Descenders take about 0.35 of the capitals' height.
    low, high = top + height + 3, top + band - 3 - round(0.35 * height)
    baseline = rng.randint(low, max(low, high))
    return Row(text, font, height, colour, rgb, left, baseline, spacing)


def _chart(rng: random.Random, width: int, height: int) -> Scene:
    """Three to five bars of different colours and of values 1 to 9, one of them the highest."""
    count = rng.randint(3, 5)
    widest = (width - 6) / count
    pitch = rng.uniform(min(max(0.75 * widest, 13.0), widest), widest)
    gap = min(pitch - 10, pitch * rng.uniform(0.15, 0.45))
    start = rng.uniform(3, width - 3 - pitch * count)
    highest = rng.choices(range(2, 10), range(1, 9))[0]  # else low values would be far more frequent
    values = [rng.randint(1, highest - 1) for _ in range(count)]
    values[rng.randrange(count)] = highest
    bars = []
    for i, (colour, value) in enumerate(zip(rng.sample(COLOUR_NAMES, count), values, strict=True)):
        left = round(start + i * pitch + gap / 2)
        rgb = _jittered(rng, COLOURS[colour])
        bars.append(Bar(colour, rgb, value, left, max(10, round(pitch - gap))))
    return Scene(width, height, _jittered(rng, rng.choice(LIGHT), 5), bars=tuple(bars))
