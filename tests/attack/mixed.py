"""64 honest clients of a server, first alone, then beside hostile ones of all kinds; the last line is JSON.

    python -m tests.attack.mixed FOLDER [--minutes 10] [--clients 64] [--pause 2.0] [--threads 8]

Each client asks again and again, with a pause between: for text, a stream, a format, or about a picture, and
again after a 429 when it is told to. Exits with 1 where an honest question had another answer than 200, its
99th percentile was not below twice that without hostile load, or memory grew by 64 MB or more.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.attack.bodies import MIB, question
from tests.attack.connections import open_many_files
from tests.attack.processes import held
from tests.doors import data_url, png
from tests.serving import CHAT, Process

GROWTH = 64_000_000
PICTURES = [data_url(png((64 + 16 * at, 96), (40 * at, 90, 200))) for at in range(6)]


def honest_question(draw: random.Random) -> tuple[str, dict]:
    """Give a kind and a body."""
    kind = draw.choice(["text", "text", "stream", "format", "picture"])
    text = f"What is {draw.randint(0, 10**6)}?"
    if kind == "picture":
        return kind, question(text, draw.choice(PICTURES), max_tokens=4)
    if kind == "format":
        return kind, question(text, max_tokens=4, response_format={"type": "regex", "regex": "[a-z]{1,3}"})
    return kind, question(text, max_tokens=8, stream=kind == "stream")


async def ask(client: httpx.AsyncClient, url: str, body: dict, found: Counter) -> None:
    """Ask until it is answered, as a 429 says; anything else but an answer is counted as what it was."""
    for _ in range(100):
        try:
            answer = await client.post(url + CHAT, json=body)
        except httpx.HTTPError as error:
            found[type(error).__name__] += 1
            return
        found[answer.status_code] += 1
        if answer.status_code != 429:
            if answer.status_code == 200 and body.get("stream") and "[DONE]" not in answer.text:
                found["cut stream"] += 1
            return
        await asyncio.sleep(float(answer.headers["retry-after"]))
    found["never answered"] += 1


async def one_client(url: str, seed: int, end: float, pause: float, found: Counter, times: list) -> None:
    draw = random.Random(seed)
    async with httpx.AsyncClient(timeout=120) as client:
        await asyncio.sleep(draw.random() * pause)
        while time.monotonic() < end:
            start = time.monotonic()
            kind, body = honest_question(draw)
            await ask(client, url, body, found)
            times.append((time.monotonic() - start, kind))
            await asyncio.sleep(2 * draw.random() * pause)


async def honest_load(process: Process, clients: int, seconds: float, pause: float) -> dict:
    """Give what came of it, and what the server held, by the second."""
    found: Counter = Counter()
    times: list[tuple[float, str]] = []
    memory: list[int] = []
    end = time.monotonic() + seconds

    async def look() -> None:
        while time.monotonic() < end:
            memory.append(held(process.process.pid))
            await asyncio.sleep(1)

    await asyncio.gather(
        look(), *(one_client(process.url, seed, end, pause, found, times) for seed in range(clients))
    )
    return {
        "answers": {str(key): count for key, count in found.items()},
        **percentiles([each for each, _ in times]),
        "kinds": {
            kind: percentiles([each for each, other in times if other == kind])
            for kind in sorted({kind for _, kind in times})
        },
        "memory": memory,
    }


def percentiles(times: list[float]) -> dict[str, float]:
    times = sorted(times)
    named = {"p50": len(times) // 2, "p99": int(0.99 * len(times)), "worst": -1}
    return {name: round(times[at], 4) for name, at in named.items()}


def growth(memory: list[int]) -> int:
    """Give by how much the last fifth holds more than the second one, by medians, which no peak moves."""
    fifth = max(1, len(memory) // 5)
    return int(statistics.median(memory[-fifth:]) - statistics.median(memory[fifth : 2 * fifth] or memory))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between a client's questions")
    parser.add_argument("--threads", type=int, default=8, help="hostile requests at a time")
    parser.add_argument("--kinds", nargs="+", help="of hostile requests, such as pictures; all unless given")
    args = parser.parse_args()
    open_many_files(4096)
    seconds = 60 * args.minutes
    with tempfile.TemporaryDirectory() as base:
        options = ("--model", args.folder.resolve(), "--model-name", "model", "--device", "cpu")
        with Process(Path(base), *options, PIXEDGE_API_KEY="") as process:

            def load(length: float) -> dict:
                return asyncio.run(honest_load(process, args.clients, length, args.pause))

            load(min(10.0, seconds / 4))  # fills caches
            print(f"{args.clients} honest clients alone", flush=True)
            alone = load(max(10.0, seconds / 5))
            command = [sys.executable, "-m", "tests.attack.hostile", str(process.port)]
            kinds = ["--kinds", *args.kinds] if args.kinds else []
            hostile = subprocess.Popen(
                [*command, "--threads", str(args.threads), *kinds],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert hostile.stdout is not None and hostile.stdout.readline() == "ready\n"
            print(f"{args.clients} honest clients beside {args.threads} hostile requests", flush=True)
            beside = load(seconds)
            sent = json.loads(hostile.communicate("", timeout=300)[0].splitlines()[-1])
            code = process.end()
            said = [line for line in process.said if "Traceback" in line]
    grown = growth(beside["memory"])
    peak = max(beside.pop("memory")) - max(alone.pop("memory"))
    faults = []
    for load_name, found in (("alone", alone), ("beside", beside)):
        if wrong := {key: count for key, count in found["answers"].items() if key not in ("200", "429")}:
            faults.append(f"{load_name}: {wrong}")
    if beside["p99"] >= 2 * alone["p99"]:
        faults.append(f"p99 is {beside['p99']} s and was {alone['p99']} s")
    if grown >= GROWTH:
        faults.append(f"memory grew by {grown / 1e6:.0f} MB")
    if wrong := {key: count for key, count in sent.items() if key.partition(": ")[2].startswith("5")}:
        faults.append(f"hostile requests had {wrong}")
    if code or said:
        faults.append(f"the server ended with {code} and wrote: {''.join(process.said[1:])[-2000:]}")
    print(
        f"alone:  {alone}\nbeside: {beside}\nhostile: {sent}\npeak over the honest one: {peak / MIB:.0f} MiB"
    )
    print(json.dumps({"alone": alone, "beside": beside, "grown": grown, "peak": peak, "faults": faults}))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
