"""What an unfinished export has done, so that the same command can go on from there.

It stands beside the folder that is being written, and is brought to the disk after whatever it tells of. Work
that it does not tell of is done again and gives the same bytes.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pixedge.durable_file import publish
from pixedge_export.layers import LinearError
from pixedge_export.vision import ParityRow

_FILE = "journal.json"


@dataclass
class Journal:
    """The facts that later phases need from finished ones.

    key: what the export is made from; another key is another export. parity: of the vision graphs, None until
    they are written. layers: how many are finished, None until the samples are embedded. streams: the file of
    each stream in front of the next layer. seconds: by phase, over all runs.
    """

    folder: Path
    key: Mapping[str, Any]
    parity: list[ParityRow] | None = None
    layers: int | None = None
    streams: dict[str, str] = field(default_factory=dict)
    errors: list[LinearError] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self) -> None:
        """Bring it to the disk. Raises OSError when the file cannot be written."""
        data = {name: value for name, value in asdict(self).items() if name != "folder"}
        beside = self.folder / f"{_FILE}.new"
        beside.write_text(json.dumps(data), encoding="utf-8")
        publish(beside, self.folder / _FILE)


def read_journal(folder: Path) -> Journal | None:
    """Read the journal of an unfinished export; None where there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        data = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        rows, errors = data.pop("parity"), data.pop("errors")
        parity = None if rows is None else [ParityRow(**row) for row in rows]
        return Journal(folder, **data, parity=parity, errors=[LinearError(**error) for error in errors])
    return None


def describe_difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Say in a few words what of two keys differs first, as "group_size 64, now 128"."""
    for name in (*here, *(name for name in there if name not in here)):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old != new:
            return describe_difference(new, old)
        if old != new:
            plain = all(isinstance(value, str | int | float | None) for value in (old, new))
            return f"{name} {old}, now {new}" if plain else f"another {name}"
    return "nothing"
