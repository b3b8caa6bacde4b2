"""Spans of time by track: what happened when, for a timeline and for a trace."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pixedge.engine import Engine


@dataclass(frozen=True)
class Span:
    """Something that took from start to end, in seconds of time.perf_counter; ``told`` says more about it."""

    track: str
    name: str
    start: float
    end: float
    told: dict[str, Any] = field(default_factory=dict)


class Recorder:
    """Collects spans. Those of one track lie beside each other or inside each other, never across."""

    def __init__(self) -> None:
        """Begin now."""
        self.began = time.perf_counter()
        self.spans: list[Span] = []

    @contextmanager
    def span(self, track: str, name: str, **told: Any) -> Iterator[dict[str, Any]]:
        """Record what is done inside, also when it fails; more can be told through what is given."""
        start = time.perf_counter()
        try:
            yield told
        finally:
            self.add(track, name, start, time.perf_counter(), **told)

    def add(self, track: str, name: str, start: float, end: float, **told: Any) -> None:
        """Record what is over."""
        self.spans.append(Span(track, name, start, end, told))

    @contextmanager
    def watching(self, engine: Engine) -> Iterator[None]:
        """Record the engine's steps, and what they are made of, as long as this lasts."""
        runner = engine.runner
        watched: list[tuple[Any, str, Callable[..., Any]]] = [
            (engine, "step", lambda: ("step", {})),
            (runner.pictures, "encode", _picture),
            (runner, "outcomes", _parts),
        ]
        for owner, method, tell in watched:
            # On the object itself, which hides its class's method until it is taken away again.
            vars(owner)[method] = self._recorded(getattr(owner, method), tell, runner.now)
        try:
            yield
        finally:
            for owner, method, _ in watched:
                del vars(owner)[method]

    def _recorded(
        self,
        method: Callable[..., Any],
        tell: Callable[..., tuple[str, dict[str, Any]]],
        now: Callable[[], float],
    ) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            name, told = tell(*args)
            start = now()
            try:
                return method(*args)
            finally:
                self.add("engine", name, start, now(), **told)

        return recorded


def _picture(picture: Any) -> tuple[str, dict[str, Any]]:
    height, width = picture.pixels.shape[1:]
    return "encode", {"width": width, "height": height, "tokens": len(picture.places)}


def _parts(parts: Any) -> tuple[str, dict[str, Any]]:
    prefill = any(request.prefilling for request, _ in parts)
    tokens = sum(count for _, count in parts)
    return ("prefill" if prefill else "decode"), {"answers": len(parts), "tokens": tokens}
