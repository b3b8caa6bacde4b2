"""Spans in the Trace Event Format that Perfetto (ui.perfetto.dev) and chrome://tracing open.

A span is a complete event ("ph": "X") with its begin and its length in microseconds; a metadata event ("M")
names each track, which is a thread there. Format: "Trace Event Format", Chromium project, 2016.
"""

import os
from collections.abc import Sequence
from typing import Any

from pixedge.profile.spans import Span


def trace(spans: Sequence[Span], began: float, name: str) -> dict[str, Any]:
    """Return the object of the file, events in the order in which they began, the outer one first."""
    process = os.getpid()
    tracks = {track: number for number, track in enumerate(dict.fromkeys(span.track for span in spans), 1)}
    events: list[dict[str, Any]] = [_told(process, 0, "process_name", name=f"pixedge profile: {name}")]
    for track, number in tracks.items():
        events.append(_told(process, number, "thread_name", name=track))
        events.append(_told(process, number, "thread_sort_index", sort_index=number))
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        start, end = (round(1e6 * (each - began), 3) for each in (span.start, span.end))
        events.append(
            {
                "name": span.name,
                "cat": span.track.split()[0],
                "ph": "X",
                "ts": start,
                "dur": round(end - start, 3),
                "pid": process,
                "tid": tracks[span.track],
                "args": span.told,
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _told(process: int, thread: int, what: str, **told: object) -> dict[str, Any]:
    return {"name": what, "ph": "M", "ts": 0, "pid": process, "tid": thread, "args": told}
