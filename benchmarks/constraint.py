"""Time what holding an answer to a format costs at Pixtral's vocabulary of 131,072 tokens.

    python benchmarks/constraint.py

For each format random answers are drawn. "mask" is the processor time from a chosen token to the next mask,
"choice" what choosing among the allowed tokens takes more than among all. "share" is both together as a part
of a token, as if nothing was done beside the step. "lost" is what a step really loses: a stand-in of it
(reading memory on every core, as a decoder on the CPU does, or a sleep, as a GPU works by itself) and the
choice of a token, with the format and without it, in turn; there the mask is worked out beside the step. The
last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import torch
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from pixedge.answer_format import AnswerFormat
from pixedge.constraint import Constraint, Vocabulary
from pixedge.sampling import Sampler, SamplingParams

TEKKEN = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
INVOICE = {
    "type": "object",
    "properties": {
        "number": {"type": "string"},
        "date": {"type": "string", "format": "date"},
        "currency": {"enum": ["EUR", "USD", "GBP"]},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 60},
                    "count": {"type": "integer", "minimum": 1},
                    "price": {"type": "number"},
                },
                "required": ["name", "count", "price"],
                "additionalProperties": False,
            },
            "minItems": 3,
        },
        "total": {"type": "number"},
    },
    "required": ["number", "date", "currency", "items", "total"],
    "additionalProperties": False,
}
FORMATS = {
    "invoice schema": AnswerFormat.from_schema(INVOICE),
    "any JSON object": AnswerFormat.json_object(),
    "regex": AnswerFormat.from_regex(r"([A-Z]{2}-\d{4}(, )?){40}"),
    "grammar": AnswerFormat.from_lark('start: line{20,}\nline: /[a-z]+/ " = " /[0-9]{1,8}/ ";\\n"'),
}
# What a token of Pixtral-12B takes: the 2-core machine of docs/performance.md, and a fast consumer GPU.
STEPS = {"cpu": 0.234, "gpu": 0.010}


def tokens_of(answer_format: AnswerFormat, vocabulary: Vocabulary, count: int, seed: int) -> list[int]:
    """Draw a random answer of at most ``count`` tokens, likelier to be short tokens as text is."""
    constraint = vocabulary.constraint(answer_format)
    random, said = np.random.default_rng(seed), []
    for _ in range(count):
        allowed = constraint.allowed()
        allowed = allowed[allowed != 2] if len(allowed) > 1 else allowed
        said.append(int(allowed[int(len(allowed) * random.random() ** 3)]))
        if said[-1] == 2:
            break
        constraint.advance(said[-1])
    return said


def mask_seconds(answer_format: AnswerFormat, vocabulary: Vocabulary, tokens: list[int]) -> list[float]:
    """Time each mask of an answer, in seconds of this thread on a processor, whatever else runs there."""
    constraint, seconds = vocabulary.constraint(answer_format), []
    for token in tokens:
        start = time.thread_time()
        constraint._follow(token)
        seconds.append(time.thread_time() - start)
    return seconds


class Forced(Constraint):
    """Allows what its format does, and is told the tokens of a given answer, whatever was chosen."""

    tokens: list[int]

    def advance(self, token: int) -> None:
        """Go on with the next token of the answer."""
        super().advance(self.tokens.pop(0))


class Known(Constraint):
    """Allows what was worked out before."""

    masks: list[np.ndarray]

    def allowed(self) -> np.ndarray:
        """Return the next mask's ids."""
        return self.masks[0]

    def advance(self, token: int) -> None:
        """Go on."""
        self.masks.pop(0)


def choice_seconds(
    answer_format: AnswerFormat, vocabulary: Vocabulary, tokens: list[int], logits: list[torch.Tensor]
) -> float:
    """Return what choosing a token costs more with a mask that is there, in seconds of a processor."""
    constraint, masks = vocabulary.constraint(answer_format), []
    for token in tokens:
        masks.append(constraint.allowed())
        constraint.advance(token)
    constraint.__class__ = Known
    constraint.masks = masks  # type: ignore[attr-defined]
    free = Sampler(SamplingParams())
    held = Sampler(SamplingParams(answer_format=answer_format), (), constraint)
    more = []
    for row in logits:
        start = time.thread_time()
        free.sample(row)
        middle = time.thread_time()
        held.sample(row)
        more.append(time.thread_time() - middle - (middle - start))
    return statistics.fmean(more)


def reader(seconds: float) -> Callable[[], None]:
    """Give work for about so long: torch reads memory on all cores, as a decoder on the CPU does."""
    data = torch.ones(1 << 25)  # 128 MiB

    def passes(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            data.sum()
        return time.perf_counter() - start

    passes(2)
    count = max(1, round(seconds / (passes(5) / 5)))
    return lambda: void(passes(count))


def void(_: object) -> None:
    """Drop a value."""


def lost(
    answer_format: AnswerFormat,
    vocabulary: Vocabulary,
    tokens: list[int],
    step: Callable[[], None],
    logits: list[torch.Tensor],
) -> tuple[float, float]:
    """Return the median seconds of a step without the format, and of what a step with it takes more."""
    free = Sampler(SamplingParams())
    constraint = vocabulary.constraint(answer_format)
    constraint.__class__ = Forced
    constraint.tokens = list(tokens)  # type: ignore[attr-defined]
    held = Sampler(SamplingParams(answer_format=answer_format), (), constraint)

    def seconds(sampler: Sampler, row: torch.Tensor) -> float:
        start = time.perf_counter()
        step()
        sampler.sample(row)
        return time.perf_counter() - start

    # In turn, so that what else runs on the machine meets both.
    pairs = [(seconds(free, row), seconds(held, row)) for row in logits]
    return statistics.median(a for a, _ in pairs), statistics.median(b - a for a, b in pairs)


def measure(
    name: str, vocabulary: Vocabulary, steps: dict[str, Callable[[], None]], count: int, size: int
) -> dict[str, Any]:
    """Measure one format."""
    answer_format = FORMATS[name]
    start = time.perf_counter()
    vocabulary.constraint(answer_format)
    begin = time.perf_counter() - start
    masks = []
    for seed in range(5):
        masks += mask_seconds(answer_format, vocabulary, tokens_of(answer_format, vocabulary, 100, seed))
    row: dict[str, Any] = {
        "format": name,
        "begin_seconds": begin,
        "masks": len(masks),
        "mask_seconds": {
            "median": statistics.median(masks),
            "mean": statistics.fmean(masks),
            "p99": float(np.quantile(masks, 0.99)),
            "greatest": max(masks),
        },
        "steps": {},
    }
    tokens = next(
        found
        for seed in range(100)
        if len(found := tokens_of(answer_format, vocabulary, count, seed)) == count and found[-1] != 2
    )
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(size, generator=generator) for _ in range(count)]
    choice = choice_seconds(answer_format, vocabulary, tokens, logits)
    row["choice_seconds"] = choice
    for kind, step in steps.items():
        free, more = lost(answer_format, vocabulary, tokens, step, logits)
        row["steps"][kind] = {
            "without_seconds": free,
            "lost_seconds": more,
            "lost_share": more / free,
            "share_of_a_token": (choice + statistics.fmean(masks)) / STEPS[kind],
        }
    return row


def line(cells: Sequence[str]) -> str:
    """Write a line of the table."""
    return f"{cells[0]:<16}" + "".join(f"{cell:>12}" for cell in cells[1:])


def main() -> None:
    """Measure all formats."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer in the loops")
    parser.add_argument("--tekken", type=Path, default=TEKKEN)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="shorten the steps, to try the benchmark out"
    )
    args = parser.parse_args()
    tekken = MistralTokenizer.from_file(args.tekken).instruct_tokenizer.tokenizer
    assert isinstance(tekken, Tekkenizer)
    vocabulary = Vocabulary(tekken)
    start = time.perf_counter()
    vocabulary.constraint(FORMATS["any JSON object"])
    build = time.perf_counter() - start
    steps: dict[str, Callable[[], None]] = {
        "cpu": reader(STEPS["cpu"] * args.scale),
        "gpu": lambda: time.sleep(STEPS["gpu"] * args.scale),
    }
    print(f"vocabulary of {tekken.n_words:,} built once in {build:.2f} s")
    heads = ["format", "begin ms", "mask us", "p99 us", "choice us"]
    heads += [f"{kind} {what}" for kind in STEPS for what in ("step ms", "share", "lost us")]
    print(line(heads))
    rows = []
    for name in FORMATS:
        row = measure(name, vocabulary, steps, args.tokens, tekken.n_words)
        rows.append(row)
        mask = row["mask_seconds"]
        cells = [name, f"{1e3 * row['begin_seconds']:.1f}", f"{1e6 * mask['mean']:.0f}"]
        cells += [f"{1e6 * mask['p99']:.0f}", f"{1e6 * row['choice_seconds']:.0f}"]
        for kind in STEPS:
            step = row["steps"][kind]
            cells += [f"{1e3 * step['without_seconds']:.1f}", f"{step['share_of_a_token']:.2%}"]
            cells.append(f"{1e6 * step['lost_seconds']:+.0f}")
        print(line(cells), flush=True)
    print(json.dumps({"vocabulary": tekken.n_words, "build_seconds": build, "formats": rows}))


if __name__ == "__main__":
    main()
