"""Ctrl-C while an answer is on its way."""

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixedge.model import Stream


@contextlib.contextmanager
def ctrl_c_ends(stream: "Stream") -> Iterator[list[int]]:
    """Let Ctrl-C end an answer, at the next step; the third one, where a step takes long, is an interrupt."""
    presses: list[int] = []

    def press(number: int, _: Any) -> None:
        presses.append(number)
        if len(presses) > 2:
            raise KeyboardInterrupt
        stream.close()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
