"""The rows of a profile: what each measures, how long it took, and the least that it could take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pixedge.prediction import Machine, Stage
from pixedge.profile.samples import Samples

StageName = Literal["load", "read", "resize", "encode", "prefill", "first_token", "decode"]


@dataclass(frozen=True)
class Row:
    """One thing measured.

    amount: units of ``unit`` in a run; 0 where no rate is told. work: the stages of a run, each with the
    bytes and the operations that it cannot do without, those of ``encodings`` pictures first; none where no
    limit is known. begin: for rows of answers, the work of a step behind no tokens. layered: whether the time
    grows with the decoder's layers, but for ``rest`` seconds of a run. answers: under way at a time. tokens:
    of a prompt, or of each answer. context: tokens before them. size: of the picture, in pixels.
    """

    name: str
    stage: StageName
    samples: Samples
    amount: int = 0
    unit: str = "tokens"
    work: tuple[Stage, ...] = ()
    encodings: int = 0
    begin: Stage | None = None
    layered: bool = False
    rest: float = 0.0
    answers: int = 1
    tokens: int = 0
    context: int = 0
    size: tuple[int, int] | None = None

    def reckoned(self, layers: int, made: int) -> float | None:
        """Reckon the median for more decoder layers than were made; None where there is nothing to reckon."""
        if not self.layered or layers == made:
            return None
        rest = min(self.rest, self.samples.median)
        return rest + (self.samples.median - rest) * layers / made


@dataclass(frozen=True)
class Skipped:
    """A row that was not measured, and why."""

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


def predicted_seconds(row: Row, machine: Machine) -> float | None:
    """Predict a row as ``pixedge plan`` does: its limits over the shares of them that such machines reach."""
    if not row.work:
        return None
    pictures, text = row.work[: row.encodings], row.work[row.encodings :]
    seconds = sum(stage.limit(machine) for stage in pictures) / machine.encode
    if row.begin is None:
        return seconds + sum(stage.limit(machine) for stage in text) / machine.prefill
    share = machine.decode_share(row.answers)
    begin, begun = row.begin, row.begin.limit(machine) / share
    for stage in text:
        behind = Stage(stage.bytes - begin.bytes, stage.operations - begin.operations)
        seconds += begun + behind.limit(machine) / (machine.attention or share)
    return seconds


def row_record(row: Row, machine: Machine, layers: int, made: int) -> dict[str, Any]:
    """Give a row's object in the JSON; what is not called reckoned is of the layers that were made."""
    median, limit = row.samples.median, limit_seconds(row.work, machine)
    predicted = predicted_seconds(row, machine)
    whole = row.reckoned(layers, made)
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
        "spread": _rounded(row.samples.spread, 6),
        "unit": row.unit if row.amount else None,
        "rate": round(row.amount / median, 3) if row.amount else None,
        "limit_seconds": _rounded(limit, 6),
        "share_of_limit": None if limit is None else round(limit / median, 4),
        "bound": binding(row.work, machine),
        "predicted_seconds": _rounded(predicted, 6),
        "reckoned_seconds": _rounded(whole, 6),
        "reckoned_rate": round(row.amount / whole, 3) if whole and row.amount else None,
    }


def _rounded(value: float | None, places: int) -> float | None:
    return None if value is None else round(value, places)
