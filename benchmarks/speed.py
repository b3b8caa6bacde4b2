"""Run the benchmarks in Pixtral-12B's shape, beside other engines where they are installed.

    python benchmarks/speed.py
    LLAMA_CPP=llama/bin/python python benchmarks/speed.py --rounds 2 --write

LLAMA_CPP names an environment's Python that peer_llama_cpp.py can run in. The decoder and llama.cpp take
turns, once a round, because what else the machine does changes from minute to minute; of several rounds the
medians count. --write stores the figures in docs/speed.json, from which docs/make_speed.py makes the README's
table. The last line is JSON.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from pixedge.machine import describe_machine

HERE = Path(__file__).resolve().parent
FILE = HERE.parent / "docs" / "speed.json"
FIRST_TOKEN = 1104
"""Tokens of a 512 x 512 picture, 30 words and what surrounds them."""


def last_line(python: str, script: str, *arguments: str) -> Any:
    """Run a benchmark, showing what it prints; return its last line's object."""
    command = [python, str(HERE / script), *arguments]
    print(f"\n{' '.join([script, *arguments])}", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            if not line.startswith("{"):
                print(line, end="", flush=True)
    if process.returncode:
        sys.exit(f"{script} ended with {process.returncode}")
    return json.loads(line)


def middle(rounds: list[Any]) -> Any:
    """Return the median of every number in objects of one form; what is no number comes from the first."""
    first = rounds[0]
    if isinstance(first, dict):
        return {key: middle([each[key] for each in rounds]) for key in first}
    if isinstance(first, list):
        return [middle(list(items)) for items in zip(*rounds, strict=True)]
    return statistics.median(rounds) if isinstance(first, float) else first


def main() -> None:
    """Measure everything and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4, help="decoder layers to make (default 4)")
    parser.add_argument("--growth", action="store_true", help="all 40 layers and contexts up to 131,072 too")
    parser.add_argument("--tiny", action="store_true", help="a far smaller shape, to try this script")
    parser.add_argument("--write", action="store_true", help="store the figures in docs/speed.json")
    args = parser.parse_args()
    tiny = ["--tiny", "--repeats", "2"] if args.tiny else []
    other = os.environ.get("LLAMA_CPP")
    prompts = ["64"] if args.tiny else ["512", "2048", str(FIRST_TOKEN)]
    decoder, peer = [], []
    for _ in range(args.rounds):
        options = ["--vision-layers", "0", "--layers", str(args.layers), "--prompts", *prompts, *tiny]
        decoder.append(last_line(sys.executable, "decoder.py", *options))
        if other:
            peer.append(last_line(other, "peer_llama_cpp.py"))
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "decoder": middle(decoder),
        "llama_cpp": middle(peer) if peer else None,
        "vision": last_line(sys.executable, "vision.py", *tiny),
        "growth": [],
    }
    if args.growth:
        for options in (
            ["--layers", "4", "--batches", "--contexts", "512", "2048", "8192", "32768", "131072"],
            ["--layers", "10", "--batches", "1", "--contexts"],
            ["--layers", "20", "--batches", "1", "--contexts"],
            ["--layers", "40", "--batches", "1", "--contexts"],
        ):
            common = ["--vision-layers", "0", "--prompts", "--bits", "8", "--repeats", "4"]
            found["growth"].append(last_line(sys.executable, "decoder.py", *options, *common))
    if args.write:
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
