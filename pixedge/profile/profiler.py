"""Measures a subject row by row, then one question and several at a time, with memory and spans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pixedge.profile.bench import Bench, Job
from pixedge.profile.memory_meter import MemoryMeter
from pixedge.profile.picture_rows import files, picture_jobs, question_jobs
from pixedge.profile.questions import Asked, Asking, ask
from pixedge.profile.rows import Row, Skipped
from pixedge.profile.settings import FEW_TOKENS
from pixedge.profile.spans import Recorder, Span
from pixedge.profile.text_rows import decode_jobs, prefill_jobs

PROFILE = "profile"
"""The track of the rows."""


class Report(Protocol):
    """Takes a step of the work."""

    def __call__(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Show it."""


@dataclass(frozen=True)
class Findings:
    """What was measured. timeline: the spans of one question by itself. asked: several at a time."""

    rows: Sequence[Row]
    skipped: Sequence[Skipped]
    timeline: Sequence[Span]
    asked: Sequence[Asked]


def measure(bench: Bench, meter: MemoryMeter, recorder: Recorder, report: Report) -> Findings:
    """Measure everything; what is found shows how the machine was while it ran, and nothing else."""
    found = [*picture_jobs(bench), *prefill_jobs(bench), *question_jobs(bench), *decode_jobs(bench)]
    jobs = [each for each in found if isinstance(each, Job)]
    total = len(jobs) + (2 if bench.settings.requests else 1)
    rows = []
    for done, job in enumerate(jobs):
        report("measure", done, total, job.name)
        with meter.phase(job.phase), recorder.span(PROFILE, job.name):
            rows.append(job.measure())
    report("measure", len(jobs), total, "one question")
    timeline = _one_question(bench, meter, recorder)
    asked: list[Asked] = []
    if bench.settings.requests:
        report("measure", len(jobs) + 1, total, "several questions at a time")
        asked = _several_questions(bench, meter, recorder)
    report("measure", total, total)
    return Findings(rows, [each for each in found if isinstance(each, Skipped)], timeline, asked)


def _one_question(bench: Bench, meter: MemoryMeter, recorder: Recorder) -> list[Span]:
    """Record a question about the largest picture, or about all that were given."""
    pictures = bench.settings.pictures or files(bench)[-1:]
    asking = Asking(pictures, FEW_TOKENS, bench.settings.max_image_size)
    before = len(recorder.spans)
    with (
        meter.phase("first token"),
        recorder.span(PROFILE, "one question"),
        recorder.watching(bench.trials.engine),
    ):
        ask(bench.trials, asking, recorder)
    return [span for span in recorder.spans[before:] if span.track != PROFILE]


def _several_questions(bench: Bench, meter: MemoryMeter, recorder: Recorder) -> list[Asked]:
    """Ask about the smallest picture, or about all that were given."""
    settings = bench.settings
    pictures = settings.pictures or files(bench)[:1]
    asking = Asking(pictures, FEW_TOKENS, settings.max_image_size)
    with (
        meter.phase("several questions"),
        recorder.span(PROFILE, "several questions"),
        recorder.watching(bench.trials.engine),
    ):
        return ask(bench.trials, asking, recorder, settings.requests, settings.concurrency)
