"""Send the whole set of attacks to a server and print what became of them, as a table in Markdown.

    python -m tests.attack FOLDER [--formats 200] [--heads 1000] [--megabytes 32] [--only KIND ...]

Exits with 1 where an answer was a 5xx or did not come, where an honest question was not answered after an
attack, or where the server wrote a traceback.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import httpx

from tests.attack.attack import all_attacks
from tests.attack.bodies import MIB, question
from tests.attack.connections import BODY, HEAD, Slow, open_many_files, worst_wait
from tests.attack.processes import Watch, held
from tests.serving import CHAT, Process


class Row:
    """What became of one kind."""

    def __init__(self) -> None:
        self.cases = self.refused = self.served = 0
        self.seconds, self.bytes = 0.0, 0
        self.slowest = self.largest = ""
        self.broken: list[str] = []

    def add(self, name: str, status: int | None, seconds: float, taken: int) -> None:
        self.cases += 1
        self.served += status is not None and status < 400
        self.refused += status is None or 400 <= status < 500
        if status is not None and status >= 500:
            self.broken.append(f"{name}: {status}")
        if seconds > self.seconds:
            self.seconds, self.slowest = seconds, name
        if taken > self.bytes:
            self.bytes, self.largest = taken, name


def ask(process: Process) -> None:
    answer = httpx.post(process.url + CHAT, json=question(max_tokens=1), timeout=60)
    assert answer.status_code == 200, answer.text


def slow_clients(process: Process, rows: dict[str, Row]) -> None:
    """Have an honest client ask while many connections are silent or slow; the seconds are its own."""
    open_many_files(4096)
    for name, said in (("silent", b""), ("heads", HEAD), ("bodies", BODY)):
        for count in (600, 2000):
            before = held(process.process.pid)
            watch = Watch(process.process.pid, 0.05)
            with Slow(process.port, count, said, 5.0):
                worst = worst_wait(lambda: ask(process), 5)
            rows["connections"].add(f"{count} {name}", None, worst, watch.take() - before)
            watch.stop()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--heads", type=int, default=1000)
    parser.add_argument("--formats", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    rows: dict[str, Row] = defaultdict(Row)
    with tempfile.TemporaryDirectory() as base:
        options = ("--model", args.folder.resolve(), "--model-name", "model", "--device", "cpu")
        with Process(Path(base), *options, PIXEDGE_API_KEY="", files=1024) as process:
            ask(process)
            watch = Watch(process.process.pid)
            for attack in all_attacks(args.heads, args.megabytes * MIB, args.formats):
                if args.only and attack.kind not in args.only:
                    continue
                before = held(process.process.pid)
                watch.take()
                try:
                    status, seconds = attack.send(process.port)
                except TimeoutError:
                    status, seconds = 599, 60.0
                rows[attack.kind].add(attack.name, status, seconds, watch.take() - before)
                if attack.kind != "heads":
                    ask(process)
            watch.stop()
            if not args.only or "connections" in args.only:
                slow_clients(process, rows)
            ask(process)
            code = process.end()
            time.sleep(0.1)
            tracebacks = [line for line in process.said if "Traceback" in line]
    print("| kind | cases | refused | served | worst seconds | worst megabytes |")
    print("|---|---|---|---|---|---|")
    for kind, row in rows.items():
        print(
            f"| {kind} | {row.cases:,} | {row.refused:,} | {row.served:,} | {row.seconds:.2f} ({row.slowest})"
            f" | {row.bytes / MIB:.0f} ({row.largest}) |"
        )
    broken = [each for row in rows.values() for each in row.broken]
    for each in broken:
        print(f"broken: {each}", file=sys.stderr)
    print("".join(process.said[1:40]), file=sys.stderr)
    return int(bool(broken or tracebacks or code))


if __name__ == "__main__":
    sys.exit(main())
