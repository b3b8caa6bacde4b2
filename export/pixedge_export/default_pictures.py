"""Conversations about drawn pictures for calibration when no data is at hand; the answers are true."""

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pixedge_export.default_pages import (
    COLOURS,
    Drawn,
    Size,
    bar_chart,
    blank,
    document,
    line_chart,
    receipt,
)


def picture_conversation(rng: random.Random, size: Size, n_pictures: int) -> list[dict[str, Any]]:
    """Ask one to three questions about a drawn picture of size (width, height), or about two of them.

    Small pictures show shapes, landscapes and textures; documents, receipts and charts need room to be read.
    """
    drawn = [_draw(rng, size) for _ in range(n_pictures)]
    pictures: list[dict[str, Any]] = [{"type": "image", "image": one.image} for one in drawn]
    facts = [fact for one in drawn for fact in one.facts]
    if n_pictures == 2:
        first = len(drawn[0].facts)
        facts = [
            (f"About the {'first' if place < first else 'second'} picture: {question}", answer)
            for place, (question, answer) in enumerate(facts)
        ]
    facts = rng.sample(facts, rng.randint(1, min(3, len(facts))))
    question = {"type": "text", "text": facts[0][0]}
    if n_pictures == 2 and rng.random() < 0.5:
        notes = [{"type": "text", "text": note} for note in ("Here is one picture.", "And here is another.")]
        content = [notes[0], pictures[0], notes[1], pictures[1], question]
    else:
        content = [*pictures, question] if rng.random() < 0.6 else [question, *pictures]
    messages: list[dict[str, Any]] = []
    for asked, answer in [(content, facts[0][1]), *facts[1:]]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages


def _draw(rng: random.Random, size: Size) -> Drawn:
    """Choose what fits the size."""
    kinds: list[Callable[[random.Random, Size], Drawn]] = [_shapes, _landscape, _texture]
    if min(size) >= 120:
        kinds = [_shapes, _landscape, _texture, bar_chart, line_chart, document, document, receipt]
    drawn = rng.choice(kinds)(rng, size)
    return Drawn(_worn(rng, drawn.image), drawn.facts)


def _worn(rng: random.Random, image: Image.Image) -> Image.Image:
    """Give some pictures the grain and the blur that cameras and scanners leave."""
    if rng.random() < 0.4:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(2, 9), (*image.size[::-1], 1)
        )
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    return image


def _shapes(rng: random.Random, size: Size) -> Drawn:
    image, draw = blank(rng, size)
    columns = rng.randint(1, 3)
    cell = (size[0] / columns, size[1] / 2)
    seen = []
    for place in rng.sample(range(2 * columns), rng.randint(2, 2 * columns)):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(("disc", "square", "triangle", "hexagon"))
        radius = min(cell) * rng.uniform(0.25, 0.45)
        x, y = cell[0] * (place % columns + 0.5), cell[1] * (place // columns + 0.5)
        if shape == "disc":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
        else:
            sides = {"triangle": 3, "square": 4, "hexagon": 6}[shape]
            turned = 0 if shape == "square" else rng.randint(0, 359)
            draw.regular_polygon((x, y, radius), sides, rotation=turned, fill=COLOURS[colour])
        seen.append((place, f"{colour} {shape}"))
    names = [name for _, name in sorted(seen)]
    return Drawn(
        image,
        (
            ("How many shapes are there?", f"There are {len(names)} shapes."),
            ("List the shapes row by row, from the left.", "; ".join(names) + "."),
            ("Describe the picture as JSON.", json.dumps({"shapes": names, "count": len(names)})),
        ),
    )


def _landscape(rng: random.Random, size: Size) -> Drawn:
    width, height = size
    light = rng.choice(("morning", "midday", "dusk", "night"))
    above, below = {
        "morning": ((150, 190, 230), (250, 222, 190)), "midday": ((70, 140, 220), (190, 220, 245)),
        "dusk": ((70, 50, 110), (240, 130, 80)), "night": ((8, 10, 30), (30, 40, 80)),
    }[light]  # fmt: skip
    rise = np.linspace(0, 1, height)[:, None, None]  # [height, 1, 1]
    sky = np.asarray(above) * (1 - rise) + np.asarray(below) * rise  # [height, 1, 3]
    image = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    side = rng.choice(("left", "right"))
    x, y, r = width * (0.25 if side == "left" else 0.75), height * rng.uniform(0.15, 0.35), min(size) * 0.08
    disc = "moon" if light == "night" else "sun"
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(235, 235, 220) if disc == "moon" else (255, 236, 150))
    ridges = rng.randint(1, 4)
    for ridge in range(ridges):
        base = height * (0.5 + 0.45 * ridge / ridges)
        wave, phase = rng.uniform(1.5, 5), rng.uniform(0, 6.28)
        outline = [
            (i * width / 40, base + height * 0.07 * math.sin(wave * i / 40 * 6.28 + phase)) for i in range(41)
        ]
        shade = 1 - 0.6 * (ridge + 1) / ridges
        fill = (int(50 + 90 * shade), int(70 + 80 * shade), int(50 + 90 * shade))
        draw.polygon([(0, height), *outline, (width, height)], fill=fill)
    hills = "one row of hills" if ridges == 1 else f"{ridges} rows of hills"
    return Drawn(
        image,
        (
            (
                "Describe this picture.",
                f"A landscape at {light}: {hills}, and the {disc} at the upper {side}.",
            ),
            ("On which side is the " + disc + "?", f"The {disc} is on the {side}."),
            ("What time of day is it?", f"It looks like {light}, judging by the colours of the sky."),
        ),
    )


def _texture(rng: random.Random, size: Size) -> Drawn:
    width, height = size
    numbers = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choice(("clouds", "stripes", "checks", "grain"))
    a, b = rng.sample(list(COLOURS), 2)
    if kind == "clouds":  # noise of several scales, the coarse ones stronger
        share = np.zeros((height, width))
        for cells in (2, 4, 8, 16, 32):
            coarse = Image.fromarray(numbers.random((cells, cells)).astype(np.float32))
            share += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / cells
        share = np.clip((share - share.min()) / np.ptp(share), 0, 1)
    elif kind == "grain":
        share = numbers.random((height, width))
    else:
        pitch = rng.randint(4, max(5, min(size) // 4))
        rows, columns = np.mgrid[:height, :width] // pitch
        share = ((rows + columns if kind == "checks" else columns) % 2).astype(float)
    colours = np.asarray((COLOURS[a], COLOURS[b]), float)  # [2, 3]
    pixels = colours[0] + share[..., None] * (colours[1] - colours[0])  # [height, width, 3]
    looks = {
        "clouds": "soft clouds",
        "grain": "fine grain",
        "stripes": "upright stripes",
        "checks": "checks",
    }[kind]
    return Drawn(
        Image.fromarray(pixels.astype(np.uint8)),
        (
            ("What pattern is this?", f"The pattern is {looks} in {a} and {b}."),
            ("Which colours are in it?", f"{a.capitalize()} and {b}."),
            ("Are there letters in the picture?", "No, there is only a pattern."),
        ),
    )
