"""Figures of many questions at a time, under the names that vLLM's `vllm bench serve` gives them.

TTFT is the time to the first token, TPOT the time of an output token behind the first, ITL the time between
two tokens, E2EL the time from the question to the last token. All are in milliseconds there, and so here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pixedge.profile.questions import Asked

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token, without the first",
    "itl": "time between tokens",
    "e2el": "time of the whole answer",
}


def serving_record(asked: Sequence[Asked], concurrency: int) -> dict[str, Any]:
    """Sum questions up: counts, throughput, and mean, median and 99th percentile of each time."""
    duration = max(one.times[-1] for one in asked) - min(one.arrived for one in asked)
    inputs = sum(len(one.request.prompt.ids) for one in asked)
    outputs = sum(len(one.times) for one in asked)
    found: dict[str, Any] = {
        "concurrency": concurrency,
        "completed": len(asked),
        "duration": round(duration, 6),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": round(len(asked) / duration, 4),
        "output_throughput": round(outputs / duration, 3),
        "total_token_throughput": round((inputs + outputs) / duration, 3),
    }
    seconds = {
        "ttft": [one.first_token for one in asked],
        "tpot": [
            (one.end_to_end - one.first_token) / (len(one.times) - 1) for one in asked if len(one.times) > 1
        ],
        "itl": [each for one in asked for each in one.between],
        "e2el": [one.end_to_end for one in asked],
    }
    for name, values in seconds.items():
        milliseconds = 1000 * np.asarray(values)
        for kind, figure in (("mean", np.mean), ("median", np.median)):
            found[f"{kind}_{name}_ms"] = _rounded(figure(milliseconds)) if len(values) else None
        found[f"p99_{name}_ms"] = _rounded(np.percentile(milliseconds, 99)) if len(values) else None
    return found


def _rounded(value: Any) -> float:
    return round(float(value), 3)
