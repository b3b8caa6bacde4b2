"""A profile's object that nothing was measured for, with every key that a real one has."""

import copy
from typing import Any

from pixedge.known_shapes import DEMO
from pixedge.plan import Setup, Workload, make_plan
from pixedge.prediction import Machine, Stage
from pixedge.profile.record import FORMAT
from pixedge.profile.rows import Row, row_record
from pixedge.profile.samples import Samples

MACHINE = Machine("m", 1e10, 1e12, ((1, 0.8),), 0.7, 0.5, measured=True)
PHASES = ("start", "load", "pictures", "encode", "prefill", "first token", "decode", "several questions")


def _rows() -> list[Row]:
    def samples(seconds: float) -> Samples:
        return Samples((seconds, 1.01 * seconds, 0.99 * seconds, 1.02 * seconds))

    def work(seconds: float) -> tuple[Stage, ...]:
        return (Stage(seconds * 1e10, 1.0),)

    return [
        Row("load", "load", Samples((2.0,))),
        Row("read 512", "read", samples(0.01), 1, "pictures", size=(512, 512)),
        Row("resize 512", "resize", samples(0.02), 1, "pictures", size=(512, 512)),
        Row("img128", "encode", samples(0.1), 1, "pictures", (Stage(1.0, 4e10),), 1, size=(128, 128)),
        Row("img256", "encode", samples(0.5), 1, "pictures", (Stage(1.0, 2e11),), 1, size=(256, 256)),
        Row("pp128", "prefill", samples(0.2), 128, work=(Stage(1.0, 1e11),), layered=True, tokens=128),
        Row("pp512", "prefill", samples(0.7), 512, work=(Stage(1.0, 4e11),), layered=True, tokens=512),
        Row("ttft img256", "first_token", samples(0.9), work=work(0.3), layered=True, size=(256, 256)),
        Row("tg128", "decode", samples(1.28), 128, work=work(1.0), layered=True, tokens=128),
        Row("tg32 @ d512", "decode", samples(0.4), 32, work=work(0.3), layered=True, context=512),
        Row("tg32 b4", "decode", samples(0.8), 128, work=work(0.5), layered=True, answers=4),
    ]


def made_up(layers: int = 4, **changes: Any) -> dict[str, Any]:
    """Give the object, with ``layers`` of 4 made; changes take the place of its keys."""
    plan = make_plan(DEMO, Setup("cpu", "cpu"), Workload(context=4096, picture=(256, 256)))
    spans = [
        ("question 1", "question", 0.0, 1.0, {"tokens": 290}),
        ("question 1", "read", 0.0, 0.01, {}),
        ("question 1", "resize and tokenise", 0.01, 0.02, {}),
        ("engine", "step", 0.05, 0.5, {}),
        ("engine", "encode", 0.06, 0.2, {}),
        ("engine", "prefill", 0.27, 0.27, {}),
        ("engine", "decode", 0.6, 0.1, {}),
        ("engine", "decode", 0.8, 0.1, {}),
        ("question 1", "answer", 0.55, 0.45, {"tokens": 3}),
    ]
    milliseconds = {
        f"{kind}_{name}_ms": 12.5 for kind in ("mean", "median", "p99") for name in ("ttft", "tpot", "itl")
    }
    found: dict[str, Any] = {
        "format": FORMAT,
        "pixedge": "0.1.0",
        "date": "2026-11-21T04:00:00+00:00",
        "machine": {"cpu": "Some Processor", "cores": 2, "threads": 2, "memory_bytes": 8 << 30}
        | {"gpu": None, "gpu_memory_bytes": None, "os": "Linux", "python": "3.11", "pixedge": "0.1.0"}
        | {"torch": "2.13", "onnxruntime": "1.31"},
        "model": {"name": "made-up", "synthetic": False, "layers": layers, "whole_layers": 4}
        | {"device": "cpu", "vision_device": "cpu", "dtype": "bfloat16", "kv_bits": 8}
        | {"cache_tokens": 4096, "group_size": 128, "layout": "cpu", "vision_form": "fused"}
        | {"decoder": {}, "vision": {}},
        "limits": {"read_bytes_per_second": 10**10, "read_runs": [0.1, 0.11, 0.1]}
        | {"product_operations_per_second": 10**12, "product_runs": [0.13, 0.13, 0.14]},
        "rows": [row_record(row, MACHINE, 4, layers) for row in _rows()],
        "skipped": [],
        "memory": {
            "plan": plan.to_json(),
            "phases": [
                {
                    "phase": name,
                    "rss": (300 + 10 * at) << 20,
                    "torch": None,
                    "device": None,
                    "planned": 1 << 28,
                }
                for at, name in enumerate(PHASES)
            ],
        },
        "timeline": [
            {"track": track, "name": name, "start": start, "seconds": seconds} | told
            for track, name, start, seconds, told in spans
        ],
        "serving": {"concurrency": 4, "completed": 8, "duration": 2.0, "total_input_tokens": 800}
        | {"total_output_tokens": 256, "request_throughput": 4.0, "output_throughput": 128.0}
        | {"total_token_throughput": 528.0, "mean_e2el_ms": 900.0, "median_e2el_ms": 900.0}
        | {"p99_e2el_ms": 999.0, **milliseconds},
    }
    return copy.deepcopy(found | changes)
