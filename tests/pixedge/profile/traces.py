"""What a trace must be for Perfetto and chrome://tracing to show it."""

import json
from typing import Any


def check_trace(text: str) -> list[dict[str, Any]]:
    """Check the Trace Event Format and that spans nest; return the spans."""
    found = json.loads(text)
    assert found["displayTimeUnit"] == "ms"
    named, spans = set(), []
    for event in found["traceEvents"]:
        assert isinstance(event["name"], str) and isinstance(event["args"], dict)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert event["ph"] in ("X", "M")
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            if event["name"] == "thread_name":
                named.add(event["tid"])
        else:
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["cat"]
            spans.append(event)
    assert {event["tid"] for event in spans} == named
    starts = [event["ts"] for event in spans]
    assert spans and starts == sorted(starts)
    open_spans: dict[int, list[float]] = {}
    for event in spans:
        ends = open_spans.setdefault(event["tid"], [])
        end = event["ts"] + event["dur"]
        while ends and ends[-1] <= event["ts"] + 1e-3:
            ends.pop()
        assert not ends or end <= ends[-1] + 2e-3, f"{event['name']} ends behind what it is in"
        ends.append(end)
    return spans
