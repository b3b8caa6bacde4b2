"""What an engine does for a request before the first token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """The work that begins now: a picture through the encoder, or a part of the prompt.

    done: pictures before this one, or tokens of the prompt that are computed, of total. size: the picture's
    width and height in pixels, as the encoder takes it.
    """

    name: Literal["picture", "prompt"]
    done: int
    total: int
    size: tuple[int, int] | None = None


OnStage = Callable[[Stage], None]
"""Told of each stage in the thread that steps the engine; it returns at once and raises nothing."""
