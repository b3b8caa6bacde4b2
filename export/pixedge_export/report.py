"""What quantisation cost, in numbers: export_report.json.

It alone tells how long the export took, so it alone differs when the same export is made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pixedge.artifact import REPORT
from pixedge_export.divergence import Divergence
from pixedge_export.layers import LinearError
from pixedge_export.vision import ParityRow
from pixedge_export.writer import write_json


@dataclass(frozen=True)
class Report:
    """Everything that an export measured.

    source, recipe, calibration: as in pixedge.json. divergence: by method, then by kind of token. seconds: by
    phase.
    """

    source: Mapping[str, str]
    recipe: Mapping[str, Any]
    calibration: Mapping[str, Any]
    linears: Sequence[LinearError]
    divergence: Mapping[str, Mapping[str, Divergence]]
    vision_parity: Sequence[ParityRow]
    seconds: Mapping[str, float]


def write_report(folder: Path, report: Report) -> None:
    """Write export_report.json."""
    data = {
        "source": report.source,
        "recipe": report.recipe,
        "calibration": report.calibration,
        "divergence_from_16_bits": {
            method: {kind: asdict(value) for kind, value in kinds.items()}
            for method, kinds in report.divergence.items()
        },
        "linear_errors": [asdict(row) for row in report.linears],
        "vision_parity": [asdict(row) for row in report.vision_parity],
        "seconds": {phase: round(value, 2) for phase, value in report.seconds.items()},
    }
    write_json(folder / REPORT, data)
