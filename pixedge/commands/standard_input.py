"""Standard input, where something is piped in."""

import sys
from typing import BinaryIO


def piped_input() -> BinaryIO | None:
    """Give standard input as bytes; None where it is a keyboard, or closed."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    return sys.stdin.buffer
