"""The rows of a profile: what each measures, how long it took, and the least that it could take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pixedge.prediction import Machine, Stage
from pixedge.profile.samples import Samples

StageName = Literal["load", "read", "resize", "encode", "prefill", "first_token", "decode"]
Unit = Literal["tokens", "pictures"]


@dataclass(frozen=True)
class Row:
    """One thing measured.

    amount: of units in a run, 0 where no rate is told. work: the stages of a run, each with the bytes and the
    operations that it cannot do without; empty where no limit is known. rest: seconds of a run that do not
    grow with the decoder's layers. layered: whether the others do. answers: under way at a time. tokens: of
    the prompt, or of each answer. context: tokens before them. size: width and height of the picture.
    """

    name: str
    stage: StageName
    samples: Samples
    amount: int = 0
    unit: Unit = "tokens"
    work: tuple[Stage, ...] = ()
    rest: float = 0.0
    fixed: float = 0.0
    layered: bool = False
    answers: int = 1
    tokens: int = 0
    context: int = 0
    size: tuple[int, int] | None = None
    share_reached: float | None = None

    def seconds_at(self, layers: int, made: int) -> float:
        """Reckon the median at another number of decoder layers than were made."""
        if not self.layered:
            return self.samples.median
        still = min(self.rest, self.samples.median)
        return still + (self.samples.median - still) * layers / made


@dataclass(frozen=True)
class Skipped:
    """A row that could not be measured, and why."""

    name: str
    reason: str


def limit_seconds(work: Sequence[Stage], machine: Machine) -> float | None:
    """Add up what the stages take at least; None where no work is known."""
    return sum(stage.limit(machine) for stage in work) if work else None


def binding(work: Sequence[Stage], machine: Machine) -> str | None:
    """Name the limit that most of that time comes from: bandwidth or operations."""
    if not work:
        return None
    moving = sum(stage.limit(machine) for stage in work if stage.binding(machine) == "bandwidth")
    return "bandwidth" if 2 * moving >= sum(stage.limit(machine) for stage in work) else "operations"


def row_record(row: Row, machine: Machine, layers: int, made: int) -> dict[str, Any]:
    """Give a row's object in the JSON; seconds and rates are of the layers that were made."""
    median, limit = row.samples.median, limit_seconds(row.work, machine)
    whole = row.seconds_at(layers, made) if made != layers else None
    return {
        "name": row.name,
        "stage": row.stage,
        "answers": row.answers,
        "tokens": row.tokens,
        "context": row.context,
        "width": row.size[0] if row.size else None,
        "height": row.size[1] if row.size else None,
        "runs": [round(each, 6) for each in row.samples.seconds],
        "seconds": round(median, 6),
        "spread": None if row.samples.spread is None else round(row.samples.spread, 6),
        "unit": row.unit if row.amount else None,
        "rate": round(row.amount / median, 3) if row.amount else None,
        "limit_seconds": None if limit is None else round(limit, 6),
        "share_of_limit": None if limit is None else round(limit / median, 4),
        "bound": binding(row.work, machine),
        "reckoned_seconds": None if whole is None else round(whole, 6),
        "reckoned_rate": None if whole is None or not row.amount else round(row.amount / whole, 3),
    }
