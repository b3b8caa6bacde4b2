"""Write models/demo/pictures/, to try the demo on, and models/demo/held_out/, to measure it on.

    python models/demo/make_samples.py

Both are drawn as training's examples are, from seeds of their own. questions.json lists conversations about
the pictures with their answers. held_out.jsonl has a conversation a line in the format of
docs/calibration.md, ending with the question to answer, and beside `messages` the `task`, the `answer` and
its `key`, the part that must be right.
"""

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversations import conversation, save_picture
from drawing import Scene
from questions import described, json_key
from scenes import TASKS, Example, held_out, make_example
from turns import Task, Turn

FOLDER = Path(__file__).parent
HELD_OUT_SEED = 2
N_HELD_OUT = 20 * len(TASKS)

# Seeds were chosen by eye, among those whose scenes have what the questions below are about.
SHAPES_SEED = "shapes 1411"
SIGN_SEED = "sign 27"
CHART_SEED = "chart 6"
TWO_SEED = "two 2"


def _turn(task: Task, question: str, answer: str, key: str) -> Turn:
    return Turn(task, question, answer.format(key=key), key)


def _about_shapes(scene: Scene) -> list[list[Turn]]:
    (star,) = (thing for thing in scene.things if thing.shape == "star")
    (circle,) = (thing for thing in scene.things if thing.shape == "circle")
    (red,) = (thing for thing in scene.things if thing.colour == "red")
    # The star is the only thing to the left of the circle, by far more than questions need.
    assert [thing for thing in scene.things if thing.x < circle.x] == [star]
    colour = _turn("colour", "What colour is the star?", "The star is {key}.", star.colour)
    return [
        [colour],
        [_turn("shape", "What shape is the red object?", "The red object is a {key}.", red.shape)],
        [
            _turn(
                "count",
                "How many shapes are there in all?",
                "There are {key} shapes.",
                str(len(scene.things)),
            )
        ],
        [
            Turn(
                "position",
                "What is left of the circle?",
                f"{described(star).capitalize()}.",
                f"{star.colour} {star.shape}",
            )
        ],
        [Turn("json", "Describe the star as JSON.", json_key(star), json_key(star))],
        [colour, _turn("follow_up", "And the circle?", "The circle is {key}.", circle.colour)],
    ]


def _about_sign(scene: Scene) -> list[list[Turn]]:
    (word,) = (row.text for row in scene.rows if not row.text.isdecimal())
    (number,) = (row.text for row in scene.rows if row.text.isdecimal())
    read_word = _turn("word", "What is the word?", 'The word is "{key}".', word)
    read_number = _turn("number", "What is the number?", "The number is {key}.", number)
    then_number = _turn("follow_up", "And the number?", "The number is {key}.", number)
    return [[read_word], [read_number], [read_word, then_number]]


def _about_chart(scene: Scene) -> list[list[Turn]]:
    top = max(scene.bars, key=lambda bar: bar.value)
    (blue,) = (bar for bar in scene.bars if bar.colour == "blue")
    highest = _turn("highest_bar", "Which bar is the highest?", "The {key} bar is the highest.", top.colour)
    return [
        [highest],
        [
            _turn(
                "bar_value",
                "What is the value of the blue bar?",
                "The blue bar is at {key}.",
                str(blue.value),
            )
        ],
        [highest, _turn("follow_up", "What is its value?", "It is at {key}.", str(top.value))],
    ]


def _about_two(first: Scene, second: Scene) -> list[list[Turn]]:
    found = [("red", "square") in [(t.colour, t.shape) for t in scene.things] for scene in (first, second)]
    assert found == [False, True]
    which = _turn("two_pictures", "Which picture has the red square?", "The {key} picture.", "second")
    (star,) = (thing for thing in second.things if thing.shape == "star")
    other = _turn(
        "two_pictures",
        "What colour is the star in the second picture?",
        "The star in the second picture is {key}.",
        star.colour,
    )
    return [[which], [other], [which, _turn("follow_up", "And the triangle?", "The {key} picture.", "first")]]


def write_pictures(folder: Path) -> None:
    """Write the sample pictures and questions.json."""
    folder.mkdir(parents=True)

    def drawn(seed: str, size: tuple[int, int], task: Task, names: Sequence[str]) -> tuple[Scene, ...]:
        example = make_example(random.Random(seed), size, n_turns=1, tasks=(task,))
        for name, picture in zip(names, example.pictures, strict=True):
            save_picture(picture, folder / name)
        return example.scenes

    entries: list[dict[str, Any]] = []

    def ask(names: Sequence[str], conversations: list[list[Turn]]) -> None:
        entries.extend({"pictures": names, "turns": [vars(t) for t in turns]} for turns in conversations)

    ask(["shapes.png"], _about_shapes(*drawn(SHAPES_SEED, (176, 128), "position", ["shapes.png"])))
    ask(["sign.png"], _about_sign(*drawn(SIGN_SEED, (144, 112), "word", ["sign.png"])))
    ask(["chart.png"], _about_chart(*drawn(CHART_SEED, (160, 128), "highest_bar", ["chart.png"])))
    two = ["first.png", "second.png"]
    ask(two, _about_two(*drawn(TWO_SEED, (112, 96), "two_pictures", two)))
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    (folder / "questions.json").write_text(text + "\n", encoding="utf-8")


def held_out_line(example: Example, names: Sequence[str]) -> dict[str, Any]:
    """Return a line of held_out.jsonl; `names` are the files of its pictures."""
    turn = example.turns[-1]
    messages = conversation(example.turns, names, example.picture_first)
    return {"messages": messages, "task": turn.task, "key": turn.key, "answer": turn.answer}


def write_held_out(folder: Path, seed: int = HELD_OUT_SEED, count: int = N_HELD_OUT) -> None:
    """Write held_out.jsonl and its pictures."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for number, example in enumerate(held_out(seed, count)):
        names = [f"pictures/{number:03d}{letter}.png" for letter in "ab"[: len(example.pictures)]]
        for name, picture in zip(names, example.pictures, strict=True):
            save_picture(picture, folder / name)
        lines.append(json.dumps(held_out_line(example, names), ensure_ascii=False) + "\n")
    (folder / "held_out.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Replace both folders and print their sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    out = parser.parse_args().out
    for name, write in (("pictures", write_pictures), ("held_out", write_held_out)):
        folder = out / name
        if folder.exists():
            shutil.rmtree(folder)
        write(folder)
        files = [file for file in folder.rglob("*") if file.is_file()]
        print(f"{folder}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")


if __name__ == "__main__":
    main()
