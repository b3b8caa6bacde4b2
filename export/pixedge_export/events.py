"""What an export tells while it is at work."""

from collections.abc import Callable
from dataclasses import dataclass

from pixedge.config import ModelConfig


@dataclass(frozen=True)
class Event:
    """Progress of an export: ``done`` of ``total`` units of a phase, and what is being done."""

    phase: str
    done: int
    total: int
    detail: str = ""


Reporter = Callable[[Event], None]


def tell_context(config: ModelConfig, report: Reporter) -> None:
    """Tell which context counts, where the source states another."""
    if told := config.decoder.context_note():
        report(Event("context", 1, 1, told))
