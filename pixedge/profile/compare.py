"""Two profiles beside each other: ratios, and which of them are more than noise.

A row has changed when no run of one profile is as fast as any run of the other, and when the medians lie
further apart than twice the larger spread and than LEAST. Of single runs nobody can tell.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pixedge.errors import PixedgeError
from pixedge.profile.record import FORMAT
from pixedge.profile.samples import Samples
from pixedge.profile.table import plain_text
from pixedge.profile.words import seconds
from pixedge.terminal import printable

Verdict = Literal["faster", "slower", "as before", "not told"]

LEAST = 0.02
"""A change of less than this share is never called one."""
_FEWEST = 2  # runs of each side that tell anything
_MOST_BYTES = 64_000_000
_STYLES = {"faster": "green", "slower": "red", "as before": "dim", "not told": "dim"}
_SAME = ("name", "synthetic", "layers", "device", "vision_device", "dtype", "kv_bits", "layout")
_LIMITS = {"reading memory": "read_runs", "products": "product_runs"}


def read_before(file: Path) -> dict[str, Any]:
    """Read an earlier profile's object; PixedgeError says what is wrong with a file that holds none."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{file.stat().st_size:,} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise PixedgeError(
                f"{file} is of format {found['format']!r:.20}, and this pixedge compares {FORMAT}; "
                "profile again"
            )
        for row in found["rows"]:
            str(row["name"])
            _check(row["runs"])
        for runs in _LIMITS.values():
            _check(found["limits"][runs])
        dict(found["model"]), dict(found["machine"]), str(found["date"])
    except FileNotFoundError:
        raise PixedgeError(f"{file} is missing; make it with pixedge profile --json > {file}") from None
    except OSError as error:
        raise PixedgeError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise PixedgeError(
            f"{file} is not what pixedge profile --json prints ({error!r:.60}); give such a file"
        ) from error
    assert isinstance(found, dict)
    return found


def compare_records(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what changed: rows by name, times after over times before, and the machine's limits first."""
    earlier = {row["name"]: row for row in before["rows"]}
    rows = [
        _compared(f"limit: {name}", before["limits"][key], after["limits"][key])
        for name, key in _LIMITS.items()
    ]
    rows += [
        _compared(row["name"], earlier[row["name"]]["runs"], row["runs"])
        for row in after["rows"]
        if row["name"] in earlier
    ]
    names = [row["name"] for row in after["rows"]]
    return {
        "before": before["date"],
        "differences": _differences(before, after),
        "rows": rows,
        "only_before": [name for name in earlier if name not in names],
        "only_after": [name for name in names if name not in earlier],
    }


def compare_table(changes: Mapping[str, Any]) -> RenderableType:
    """Give the comparison for the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=plain_text(f"compared with {changes['before']}"),
        title_justify="left",
    )
    table.add_column("test")
    for name in ("before", "now", "time", ""):
        table.add_column(name, justify="right")
    for row in changes["rows"]:
        table.add_row(
            plain_text(row["name"]),
            seconds(row["before_seconds"]),
            seconds(row["after_seconds"]),
            f"{row['ratio']:.2f} x",
            Text(row["verdict"], style=_STYLES[row["verdict"]]),
        )
    lines = [Text(printable(f"not the same: {each}"), style="yellow") for each in changes["differences"]]
    for key, when in (("only_before", "before"), ("only_after", "now")):
        if changes[key]:
            lines.append(plain_text(f"measured only {when}: {', '.join(changes[key])}"))
    return Group(*lines, table)


def verdict(before: Sequence[float], after: Sequence[float]) -> Verdict:
    """Say whether runs, in seconds each, became faster or slower beyond noise."""
    if min(len(before), len(after)) < _FEWEST:
        return "not told"
    old, new = _median(before), _median(after)
    noise = max(2 * _spread(before) / old, 2 * _spread(after) / new, LEAST)
    apart = max(before) < min(after) or max(after) < min(before)
    if not apart or abs(math.log(new / old)) <= math.log1p(noise):
        return "as before"
    return "faster" if new < old else "slower"


def _compared(name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    old, new = _median(before), _median(after)
    return {
        "name": name,
        "before_seconds": old,
        "after_seconds": new,
        "ratio": round(new / old, 4),
        "verdict": verdict(before, after),
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = []
    for part, keys in (("model", _SAME), ("machine", ("cpu", "gpu", "threads", "pixedge"))):
        for key in keys:
            old, new = before[part].get(key), after[part].get(key)
            if old != new:
                found.append(f"{key.replace('_', ' ')} {old} before, {new} now")
    return found


def _median(runs: Sequence[float]) -> float:
    return Samples(tuple(runs)).median


def _spread(runs: Sequence[float]) -> float:
    return Samples(tuple(runs)).spread or 0.0


def _check(runs: Sequence[float]) -> None:
    """Refuse what are no seconds."""
    if not runs or not all(isinstance(each, float | int) and 0 < each < math.inf for each in runs):
        raise ValueError(f"runs {runs!r:.40}")
