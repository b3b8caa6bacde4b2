"""Equal runs of one thing, timed: their median, how far they lie apart, and when there are enough."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

LONG_WARM_UP = 5.0
"""Seconds. A first run that takes longer than this counts: what warms up is a small part of it."""


@dataclass(frozen=True)
class Samples:
    """Seconds of each run, at least one."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Nothing measured is no measurement."""
        assert self.seconds

    @property
    def median(self) -> float:
        """The middle run, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float | None:
        """Half of the distance between the quartiles, in seconds; None for a single run."""
        if len(self.seconds) == 1:
            return None
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2


def repeat(
    run: Callable[[int], float],
    repeats: int,
    enough: float,
    *,
    fewest: int = 3,
    warm_up: Callable[[], object] | None = None,
) -> Samples:
    """Time runs: ``run`` takes its number and returns the seconds that count.

    Before them comes one that does not count, or ``warm_up`` in its place. At most ``repeats`` runs are made;
    after ``fewest`` of them no further one begins once they took ``enough`` seconds. Where a run is so long
    that its warming up is lost in it (LONG_WARM_UP), the first one counts and two are made.
    """
    assert repeats >= 1
    found: list[float] = []
    if warm_up is not None:
        warm_up()
    elif (first := run(0)) > LONG_WARM_UP:
        found.append(first)
        fewest = min(fewest, 2)
    while len(found) < repeats and (len(found) < fewest or sum(found) < enough):
        found.append(run(len(found) + 1))
        if found[-1] > LONG_WARM_UP:
            fewest = min(fewest, 2)
    return Samples(tuple(found))
