"""A profile as one JSON object: all that the table, the page and a later comparison are made from."""

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pixedge import __version__
from pixedge.machine import describe_machine
from pixedge.plan import Plan
from pixedge.prediction import Machine
from pixedge.profile.bench import Bench
from pixedge.profile.limits import Limits
from pixedge.profile.memory_meter import Peak
from pixedge.profile.profiler import Findings
from pixedge.profile.rows import Row, row_record
from pixedge.profile.samples import Samples
from pixedge.profile.serving import serving_record
from pixedge.profile.spans import Span

FORMAT = 1
"""Counts up when a key changes its meaning."""

_PHASES = {
    "start": (),
    "load": (),
    "pictures": (),
    "encode": ("encoder_activations",),
    "prefill": ("kv_cache", "prefill_scratch"),
    "first token": ("kv_cache", "prefill_scratch", "encoder_activations", "pictures"),
    "decode": ("kv_cache", "prefill_scratch", "decode_scratch"),
    "several questions": (
        "kv_cache",
        "prefill_scratch",
        "decode_scratch",
        "encoder_activations",
        "pictures",
    ),
}
"""Which components of the plan a phase needs beside the process and, behind "start", the weights."""

_ALWAYS = ("process", "cuda_context")
_WEIGHTS = ("linears", "head", "norms", "embeddings", "encoder_weights")


def profile_record(
    bench: Bench, findings: Findings, limits: Limits, peaks: Sequence[Peak], machine: Machine
) -> dict[str, Any]:
    """Give the object; docs/profile.md tells what each key means."""
    subject = bench.subject
    model, engine = subject.model, subject.model.engine
    plan = subject.plan
    setup = plan.setup
    load = Row("load", "load", Samples((model.load_seconds,)))
    rows = [load, *findings.rows]
    return {
        "format": FORMAT,
        "pixedge": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(subject.device),
        "model": {
            "name": subject.name,
            "synthetic": subject.synthetic,
            "layers": subject.made,
            "whole_layers": subject.whole,
            "device": str(subject.device),
            "vision_device": setup.vision_device,
            "dtype": setup.dtype,
            "kv_bits": setup.kv_bits,
            "cache_tokens": engine.cache.tokens,
            "group_size": setup.group_size,
            "layout": plan.layout,
            "vision_form": setup.vision_form,
            "decoder": asdict(subject.config.decoder),
            "vision": asdict(subject.config.vision),
        },
        "limits": {
            "read_bytes_per_second": round(limits.bytes_per_second),
            "read_runs": [round(each, 6) for each in limits.reading.seconds],
            "product_operations_per_second": round(limits.operations_per_second),
            "product_runs": [round(each, 6) for each in limits.products.seconds],
        },
        "rows": [row_record(row, machine, subject.whole, subject.made) for row in rows],
        "skipped": [asdict(each) for each in findings.skipped],
        "memory": {
            "plan": plan.to_json(),
            "phases": [asdict(peak) | {"planned": _planned(plan, peak.phase)} for peak in peaks],
        },
        "timeline": _timeline(findings.timeline),
        "serving": serving_record(findings.asked, bench.settings.concurrency) if findings.asked else None,
    }


def _planned(plan: Plan, phase: str) -> int:
    """Add up what a phase takes of the memory that the decoder is in."""
    names = (*_ALWAYS, *(() if phase == "start" else _WEIGHTS), *_PHASES.get(phase, ()))
    if plan.setup.device == "cuda" and phase != "start":  # the cache is taken while loading
        names = (*names, "kv_cache")
    return sum(getattr(plan.device, name) for name in dict.fromkeys(names))


def _timeline(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Give one question's spans from its beginning on, in seconds."""
    if not spans:
        return []
    start = min(span.start for span in spans)
    return [
        {
            "track": span.track,
            "name": span.name,
            "start": round(span.start - start, 6),
            "seconds": round(span.end - span.start, 6),
        }
        | span.told
        for span in sorted(spans, key=lambda span: (span.start, -span.end))
    ]
