"""The demo's examples as files: PNG pictures, and messages in the form that pixedge.messages reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from turns import Turn

Message = dict[str, Any]


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write an RGB picture as a small PNG without loss: with a palette where 256 colours are enough."""
    colours = picture.getcolors(256)
    if colours is not None:
        palette = picture.quantize(len(colours))
        picture = palette if palette.convert("RGB").tobytes() == picture.tobytes() else picture
    picture.save(path, optimize=True)


def conversation(turns: Sequence[Turn], pictures: Sequence[object], picture_first: bool) -> list[Message]:
    """Return the messages up to the last question, which is the one to be answered.

    `pictures` stand in the first message: whatever an image part may hold, or names of files.
    """
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        text = [{"type": "text", "text": turn.question}]
        shown = [{"type": "image", "image": picture} for picture in pictures] if number == 0 else []
        messages.append({"role": "user", "content": shown + text if picture_first else text + shown})
        if number < len(turns) - 1:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages
