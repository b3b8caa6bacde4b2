"""The questions that every engine is asked, as make_questions.py wrote them; needs Pillow alone."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

MAX_TOKENS = 16
"""Length of each answer; the folder's own end token may end it sooner."""

Message = dict[str, Any]
"""A turn in OpenAI's spelling; pictures are data: addresses."""


def read(file: Path) -> list[list[Message]]:
    """Read the conversations, in order."""
    conversations: list[list[Message]] = json.loads(file.read_text(encoding="utf-8"))
    return conversations


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
