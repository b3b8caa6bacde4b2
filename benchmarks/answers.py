"""Time a model's answers to the demo's sample questions, by stage.

    python benchmarks/answers.py --model models/demo-pixedge-4bit

Every conversation about models/demo/pictures is asked --repeats times after one round that does not count,
and the medians are printed. Of a conversation of two turns the second is asked. The last line is JSON.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pixedge
from pixedge.commands.peak_memory import peak_memory
from pixedge.model import Model

PICTURES = Path(__file__).parents[1] / "models" / "demo" / "pictures"
STAGES = ("image_decode", "encode", "prefill", "first_token", "decode")
HEADS = ("pictures", "asked", "prompt", "answer", "pixels ms", "encode ms", "prefill ms", "first ms", "t/s")


def conversations() -> list[dict[str, Any]]:
    """Return each sample conversation: its pictures' names and the messages up to the last question."""
    found = []
    for entry in json.loads((PICTURES / "questions.json").read_text(encoding="utf-8")):
        turns = entry["turns"]
        content: list[dict[str, Any]] = [{"type": "image", "image": PICTURES / n} for n in entry["pictures"]]
        content.append({"type": "text", "text": turns[0]["question"]})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        for turn, following in itertools.pairwise(turns):
            messages.append({"role": "assistant", "content": turn["answer"]})
            messages.append({"role": "user", "content": following["question"]})
        found.append({"pictures": entry["pictures"], "question": turns[-1]["question"], "messages": messages})
    return found


def measure(model: Model, messages: list[dict[str, Any]], repeats: int, max_tokens: int) -> dict[str, Any]:
    """Ask one conversation; return its token counts and median seconds by stage."""
    params = pixedge.SamplingParams(max_tokens=max_tokens)
    answers = [model.generate(messages, params) for _ in range(repeats)]
    rates = [answer.tokens_per_second for answer in answers if answer.tokens_per_second is not None]
    seconds = {stage: statistics.median(getattr(a.timings, stage) for a in answers) for stage in STAGES}
    return {
        "prompt_tokens": answers[0].prompt_tokens,
        "image_tokens": answers[0].image_tokens,
        "completion_tokens": answers[0].completion_tokens,
        "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
        "tokens_per_second": round(statistics.median(rates), 2) if rates else None,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line for each conversation."""
    lines = [HEADS]
    for row in rows:
        milliseconds = [f"{1e3 * row['seconds'][stage]:.1f}" for stage in STAGES[:-1]]
        counts = [str(row["prompt_tokens"]), str(row["completion_tokens"])]
        rate = "-" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:.1f}"
        lines.append(("+".join(row["pictures"]), row["question"], *counts, *milliseconds, rate))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    for line in lines:
        left = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        print("  ".join([*left, *right]))


def main() -> None:
    """Measure one exported folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="exported folder")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    started = time.perf_counter()
    model = pixedge.load(args.model, device=args.device, threads=args.threads)
    load_seconds = time.perf_counter() - started
    asked = conversations()
    for conversation in asked:
        measure(model, conversation["messages"], 1, args.max_tokens)
    rows = []
    for conversation in asked:
        found = measure(model, conversation["messages"], args.repeats, args.max_tokens)
        rows.append({"pictures": conversation["pictures"], "question": conversation["question"], **found})
    print_table(rows)
    over_all: dict[str, float] = {
        stage: round(statistics.median(row["seconds"][stage] for row in rows), 6) for stage in STAGES
    }
    rates = [row["tokens_per_second"] for row in rows if row["tokens_per_second"] is not None]
    summary = {
        "model": str(args.model),
        "device": str(model.engine.device),
        "repeats": args.repeats,
        "load_seconds": round(load_seconds, 3),
        "median_seconds": over_all,
        "median_tokens_per_second": statistics.median(rates) if rates else None,
        "peak_memory_bytes": peak_memory(),
        "conversations": rows,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
