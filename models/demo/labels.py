"""What training tells the encoder about each 16-pixel patch: what covers it, how it relates to the rest.

The generator knows all of it. A label array holds one class a patch, int64 [H / 16, W / 16]; class 0 is
"nothing there", and IGNORED marks what has no single answer.
"""

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from drawing import CHARACTERS, COLOUR_NAMES, PATCH, SHAPES, Scene, Thing
from questions import counted, neighbour

IGNORED = -100
# A patch counts as covered when one item has at least this many of its 256 pixels.
MIN_PIXELS = 10

SIDES = ("left", "right", "above", "below")
NOTHING = len(SHAPES) * len(COLOUR_NAMES) + 1  # as a neighbour: there is none on that side
_MOST = 5  # things in a picture, letters in a row


@dataclass(frozen=True)
class PatchLabels:
    """The classes of one picture's patches, int64 [H / 16, W / 16] each, rounded up.

    shape, colour, character index SHAPES, COLOUR_NAMES, CHARACTERS from 1. bar: a bar's value. place: a
    letter's number in its row, from 1. left, right, above, below: the only thing on that side of a thing, as
    colour * 6 + shape + 1, or NOTHING. same_shape, same_colour, all_things: how many there are of a thing's
    shape, of its colour, and in all. counts [H / 16, W / 16, 14]: how many there are of each shape, then of
    each colour, from 1 for none, on every patch that a thing covers.
    """

    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    character: NDArray[np.int64]
    bar: NDArray[np.int64]
    place: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    above: NDArray[np.int64]
    below: NDArray[np.int64]
    same_shape: NDArray[np.int64]
    same_colour: NDArray[np.int64]
    all_things: NDArray[np.int64]
    counts: NDArray[np.int64]


COUNTED = (*(("shape", name) for name in SHAPES), *(("colour", name) for name in COLOUR_NAMES))
KINDS = tuple(field.name for field in fields(PatchLabels) if field.name != "counts")
# Classes of each label.
CLASSES: dict[str, int] = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOUR_NAMES) + 1,
    "character": len(CHARACTERS) + 1,
    "bar": 10,
    "place": _MOST + 1,
    **dict.fromkeys(SIDES, NOTHING + 1),
    **dict.fromkeys(("same_shape", "same_colour", "all_things"), _MOST + 1),
    "counts": _MOST + 2,
}


def patch_labels(scene: Scene, cover: NDArray[np.uint8]) -> PatchLabels:
    """Label the patches of a drawn scene; cover [H, W] holds the number of the item at each pixel, or 0."""
    rows, columns = -(-cover.shape[0] // PATCH), -(-cover.shape[1] // PATCH)
    # a picture that is no whole number of patches is stretched to one before it is encoded, and so is this
    cover = cv2.resize(cover, (columns * PATCH, rows * PATCH), interpolation=cv2.INTER_NEAREST)
    items = _items(scene)
    patches = cover.reshape(rows, PATCH, columns, PATCH)
    counts = np.stack([(patches == item).sum((1, 3)) for item in range(1, len(items) + 1)])  # [items, h, w]
    best = np.where(counts.max(0) >= MIN_PIXELS, counts.argmax(0) + 1, 0)  # [h, w]
    table = np.zeros((len(items) + 1, len(KINDS)), np.int64)
    for number, item in enumerate(items, 1):
        for kind, value in item.items():
            table[number, KINDS.index(kind)] = value
    in_all = [1 + counted(scene.things, kind, name) for kind, name in COUNTED]
    counts = np.where(table[best, KINDS.index("shape"), None] > 0, np.array(in_all), 0)
    return PatchLabels(*(table[best, kind] for kind in range(len(KINDS))), counts=counts)


def _items(scene: Scene) -> list[dict[str, int]]:
    """Give the classes of every item, in the order in which ``draw`` numbers them."""
    items = [_thing(scene.things, index) for index in range(len(scene.things))]
    for row in scene.rows:
        colour = COLOUR_NAMES.index(row.colour) + 1 if row.colour else 0
        items += [
            {"colour": colour, "character": CHARACTERS.index(letter) + 1, "place": place}
            for place, letter in enumerate(row.text, 1)
        ]
    items += [{"colour": COLOUR_NAMES.index(bar.colour) + 1, "bar": bar.value} for bar in scene.bars]
    return items


def _thing(things: tuple[Thing, ...], index: int) -> dict[str, int]:
    thing = things[index]
    return {
        "shape": SHAPES.index(thing.shape) + 1,
        "colour": COLOUR_NAMES.index(thing.colour) + 1,
        **{side: _neighbour(things, index, side) for side in SIDES},
        "same_shape": sum(other.shape == thing.shape for other in things),
        "same_colour": sum(other.colour == thing.colour for other in things),
        "all_things": len(things),
    }


def _neighbour(things: tuple[Thing, ...], index: int, side: str) -> int:
    found = neighbour(things, index, side)
    if found is None:
        return IGNORED
    if found == -1:
        return NOTHING
    return COLOUR_NAMES.index(things[found].colour) * len(SHAPES) + SHAPES.index(things[found].shape) + 1
