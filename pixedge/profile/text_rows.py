"""Rows of text: prompts by their length, answers by what stands before them and by how many go at a time."""

from collections.abc import Iterator

from pixedge.profile.bench import Bench, Job
from pixedge.profile.rows import Row, Skipped
from pixedge.profile.settings import FEW_TOKENS, TOKENS


def prefill_jobs(bench: Bench) -> Iterator[Job | Skipped]:
    """Yield the rows of prompts."""
    for tokens in bench.settings.prompts_of(bench.trials.room):
        if tokens < bench.trials.room:
            yield _prefill_job(bench, tokens)
        else:
            yield _skipped(bench, f"pp{tokens}", tokens + 1)


def decode_jobs(bench: Bench) -> Iterator[Job | Skipped]:
    """Yield the rows of answers: behind each depth, then several at a time behind nothing."""
    depths = bench.settings.depths_of(bench.trials.room)
    for depth in depths:
        tokens = TOKENS if depth in (depths[0], depths[-1]) else FEW_TOKENS
        yield _decode_job(bench, depth, 1, tokens)
    for batch in bench.settings.batches_of():
        yield _decode_job(bench, 0, batch, FEW_TOKENS)


def _prefill_job(bench: Bench, tokens: int) -> Job:
    name = f"pp{tokens}"

    def measure() -> Row:
        samples = bench.repeat(lambda _: bench.trials.prefill(tokens))
        work, rest = bench.prefill_work(tokens), bench.rest(1)
        return Row(name, "prefill", samples, tokens, work=work, layered=True, rest=rest, tokens=tokens)

    return Job(name, "prefill", measure)


def _decode_job(bench: Bench, depth: int, batch: int, tokens: int) -> Job | Skipped:
    name = f"tg{tokens}" + (f" @ d{depth}" if depth else "") + (f" b{batch}" if batch > 1 else "")
    if not bench.trials.fits(depth, batch, tokens):
        return _skipped(bench, name, batch * (max(1, depth) + tokens), batch)
    trials = bench.trials
    prompts = trials.texts(depth, batch)

    def measure() -> Row:
        samples = bench.repeat(lambda _: trials.decode(prompts, tokens), lambda: trials.decode(prompts, 2))
        return Row(
            name,
            "decode",
            samples,
            batch * tokens,
            work=tuple(bench.decode_work(batch, max(1, depth) + at) for at in range(tokens)),
            begin=bench.decode_work(batch, 0),
            layered=True,
            rest=tokens * bench.rest(batch),
            answers=batch,
            tokens=tokens,
            context=depth,
        )

    return Job(name, "decode", measure)


def _skipped(bench: Bench, name: str, tokens: int, batch: int = 1) -> Skipped:
    most = bench.trials.engine.options.max_requests
    if batch > most:
        return Skipped(name, f"{batch} answers, and {most} can be under way at a time")
    return Skipped(name, f"{tokens:,} tokens, and there is room for {bench.trials.room:,}")
