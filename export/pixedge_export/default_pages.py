"""Drawn pages with writing on them: documents, receipts and charts, each with questions and true answers."""

import json
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pixedge_export.default_words import FOODS, NAMES, PLACES, THINGS, paragraph

Size = tuple[int, int]  # width, height in pixels
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

COLOURS = {
    "red": (206, 44, 40), "green": (40, 148, 70), "blue": (38, 84, 190), "yellow": (240, 204, 50),
    "orange": (236, 128, 36), "purple": (124, 58, 158), "grey": (128, 132, 138), "black": (28, 28, 32),
}  # fmt: skip
_PAPERS = ((255, 255, 255), (250, 246, 232), (238, 242, 246), (226, 222, 214))
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Drawn:
    """A picture with questions about it and their answers."""

    image: Image.Image
    facts: tuple[tuple[str, str], ...]


def blank(rng: random.Random, size: Size) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Give an empty sheet of light paper, RGB, and the pen for it."""
    image = Image.new("RGB", size, rng.choice(_PAPERS))
    return image, ImageDraw.Draw(image)


def _wrapped(text: str, font: _Font, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def document(rng: random.Random, size: Size) -> Drawn:
    """Set a heading and as many lines of text as have room."""
    width, height = size
    image, draw = blank(rng, size)
    points = max(9, min(size) // rng.choice((12, 18, 24, 32, 48)))
    margin = max(4, min(size) // 16)
    title = f"{rng.choice(('Notes from', 'News of', 'Rules of', 'At'))} the {rng.choice(PLACES)}"
    ink = rng.choice(((20, 20, 24), (40, 40, 90), (70, 60, 50)))
    y = float(margin)
    shown: dict[str, list[str]] = {"title": [], "body": []}
    for part, text, part_points in (
        ("title", title, points * 3 // 2),
        ("body", paragraph(rng, 18), points),
    ):
        font = ImageFont.load_default(part_points)
        for line in _wrapped(text, font, width - 2 * margin):
            if y + 1.3 * part_points > height - margin / 2:
                break
            draw.text((margin, y), line, fill=ink, font=font)
            shown[part].append(line)
            y += 1.35 * part_points
        y += 0.5 * points
    body = " ".join(shown["body"])
    facts = [("What is the heading?", f'The heading is "{" ".join(shown["title"])}".')]
    if body:
        facts += [
            ("Read the text below the heading.", body),
            ("What is the first line of the text?", f'It is "{shown["body"][0]}".'),
            (
                "How many lines does the text have?",
                f"Below the heading there are {len(shown['body'])} lines.",
            ),
        ]
    return Drawn(image, tuple(facts))


def receipt(rng: random.Random, size: Size) -> Drawn:
    """Set two to six items with their prices and the total."""
    width, height = size
    image, draw = blank(rng, size)
    rows = rng.randint(2, 6)
    points = max(9, min(height // (2 * rows + 5), width // 12))
    font = ImageFont.load_default(points)
    items = [(food, rng.randint(50, 2999)) for food in rng.sample(FOODS, rows)]
    total = sum(cents for _, cents in items)
    shop = f"{rng.choice(NAMES)}'s shop"
    step, margin = (height - 8) / (rows + 3), width // 12
    draw.text((width / 2, 4), shop, fill=(20, 20, 24), font=font, anchor="ma")
    for place, (item, cents) in enumerate([*items, ("TOTAL", total)], 1):
        y = 4 + step * (place + (0.5 if item == "TOTAL" else 0))
        draw.text((margin, y), item, fill=(20, 20, 24), font=font)
        draw.text((width - margin, y), f"{cents / 100:.2f}", fill=(20, 20, 24), font=font, anchor="ra")
    draw.line((margin, 4 + step * (rows + 1.2), width - margin, 4 + step * (rows + 1.2)), fill=(90, 90, 90))
    dearest = max(items, key=lambda item: item[1])
    listed = {"shop": shop, "items": [{"item": i, "price": c / 100} for i, c in items], "total": total / 100}
    return Drawn(
        image,
        (
            ("What is the total?", f"The total is {total / 100:.2f}."),
            ("Give the receipt as JSON.", json.dumps(listed)),
            ("Which item is the most expensive?", f"The {dearest[0]}, at {dearest[1] / 100:.2f}."),
            ("Where was this bought?", f"At {shop}."),
        ),
    )


def _axes(draw: ImageDraw.ImageDraw, size: Size, title: str) -> tuple[float, float, float, float, _Font]:
    """Draw a title and axes; give left, top, right, bottom of the area inside, and the font."""
    points = max(9, min(size) // 18)
    font = ImageFont.load_default(points)
    left, top, right, bottom = 3.0 * points, 2.0 * points, size[0] - points, size[1] - 1.8 * points
    draw.text((size[0] / 2, 2), title, fill=(30, 30, 30), font=font, anchor="ma")
    for share in range(6):
        y = bottom - (bottom - top) * share / 5
        draw.line((left, y, right, y), fill=(205, 205, 205))
        draw.text((left - 3, y), str(20 * share), fill=(60, 60, 60), font=font, anchor="rm")
    return left, top, right, bottom, font


def bar_chart(rng: random.Random, size: Size) -> Drawn:
    """Draw three to six months' values, all different."""
    image, draw = blank(rng, size)
    what = rng.choice(THINGS)
    left, top, right, bottom, font = _axes(draw, size, f"{what.capitalize()} sales")
    count = rng.randint(3, 6)
    start = rng.randint(0, 12 - count)
    values = rng.sample(range(5, 101), count)
    colour = rng.choice(list(COLOURS))
    step = (right - left) / count
    for place, value in enumerate(values):
        x, y = left + step * (place + 0.2), bottom - (bottom - top) * value / 100
        draw.rectangle((x, y, x + 0.6 * step, bottom), fill=COLOURS[colour])
        draw.text(
            (x + 0.3 * step, bottom + 2), _MONTHS[start + place], fill=(30, 30, 30), font=font, anchor="ma"
        )
    table = dict(zip(_MONTHS[start : start + count], values, strict=True))
    best, least = max(table, key=lambda m: table[m]), min(table, key=lambda m: table[m])
    return Drawn(
        image,
        (
            ("In which month were the sales highest?", f"In {best}, at about {table[best]}."),
            ("Which bar is the lowest?", f"The lowest bar is {least}, at about {table[least]}."),
            (
                "List the values of the chart.",
                "\n".join(f"- {month}: {value}" for month, value in table.items()),
            ),
            (
                "What does the chart show?",
                f"A bar chart of {what} sales from {_MONTHS[start]} to"
                f" {_MONTHS[start + count - 1]}; the {count} bars are {colour}.",
            ),
        ),
    )


def line_chart(rng: random.Random, size: Size) -> Drawn:
    """Draw how one number went over four to ten years."""
    image, draw = blank(rng, size)
    place = rng.choice(PLACES)
    left, top, right, bottom, font = _axes(draw, size, f"Visitors, {place}")
    count = rng.randint(4, 10)
    first = rng.randint(1990, 2015)
    values = [rng.randint(10, 90)]
    while len(values) < count:
        values.append(min(100, max(0, values[-1] + rng.randint(-25, 25))))
    points = [
        (left + (right - left) * i / (count - 1), bottom - (bottom - top) * v / 100)
        for i, v in enumerate(values)
    ]
    colour = rng.choice(list(COLOURS))
    draw.line(points, fill=COLOURS[colour], width=max(1, min(size) // 90), joint="curve")
    for at, year in ((0, first), (count - 1, first + count - 1)):
        draw.text(
            (points[at][0], bottom + 2),
            str(year),
            fill=(30, 30, 30),
            font=font,
            anchor="ma" if at == 0 else "ra",
        )
    change = "more" if values[-1] > values[0] else "fewer" if values[-1] < values[0] else "as many"
    return Drawn(
        image,
        (
            (
                "What is drawn here?",
                f"A {colour} line: the visitors of the {place} from {first} to {first + count - 1}.",
            ),
            (
                "Were there more visitors at the end?",
                f"There were {change}: about {values[0]} in {first} and {values[-1]} in {first + count - 1}.",
            ),
        ),
    )
