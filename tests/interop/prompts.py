"""The conversations that every engine is asked: pictures of several sizes among text, in OpenAI's spelling.

Widths and heights are multiples of 16 and at most 256, so that no engine resizes a picture, each in its own
way, before its encoder sees it.
"""

import base64
import io
from typing import Any

from PIL import Image, ImageDraw

MAX_TOKENS = 24
"""Length of each answer; the folder's own end token may end it sooner."""

Message = dict[str, Any]


def picture(width: int, height: int, shape: str, colour: str, ground: str) -> Image.Image:
    """Draw one shape, off the middle, with a frame of dots that differ from row to row."""
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    box = (width // 6, height // 5, width * 2 // 3, height * 4 // 5)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    else:
        draw.rectangle(box, fill=colour)
    for y in range(0, height, 8):
        draw.point([(x, y) for x in range(y // 8 % 5, width, 5)], fill="black")
    return image


def part(image: Image.Image) -> dict[str, Any]:
    """Give the image as a PNG in a data: address."""
    file = io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    """Give a part of text."""
    return {"type": "text", "text": words}


def conversations() -> list[list[Message]]:
    """Give the three conversations: one picture, two pictures of other shapes, and a second turn."""
    square = picture(96, 80, "square", "red", "white")
    wide = picture(256, 48, "triangle", "blue", "grey")
    tall = picture(16, 160, "circle", "green", "black")
    large = picture(256, 256, "circle", "yellow", "purple")
    return [
        [{"role": "user", "content": [part(square), text("What colour is the square?")]}],
        [
            {
                "role": "user",
                "content": [part(wide), text("and"), part(tall), text("Which picture has the circle?")],
            }
        ],
        [
            {"role": "user", "content": [part(large), text("How many shapes are there?")]},
            {"role": "assistant", "content": "There is 1 shape."},
            {"role": "user", "content": [text("What shape is it?")]},
        ],
    ]


def images(messages: list[Message]) -> list[Image.Image]:
    """Decode the pictures of a conversation, in order."""
    urls = [
        block["image_url"]["url"]
        for message in messages
        if not isinstance(message["content"], str)
        for block in message["content"]
        if block["type"] == "image_url"
    ]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for url in urls]
