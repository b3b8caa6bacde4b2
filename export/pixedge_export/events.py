"""What an export tells while it is at work."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Progress of an export: ``done`` of ``total`` units of a phase, and what is being done."""

    phase: str
    done: int
    total: int
    detail: str = ""


Reporter = Callable[[Event], None]
