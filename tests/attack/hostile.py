"""Send attacks drawn at random, from several threads, until standard input ends; the last line is JSON.

python -m tests.attack.hostile PORT [--threads 8] [--slow 200] [--megabytes 8] [--seed 0] [--kinds KIND …]
"""

import argparse
import json
import os
import random
import sys
import threading
from collections import Counter

from tests.attack.attack import Attack, all_attacks
from tests.attack.bodies import MIB
from tests.attack.connections import BODY, HEAD, Slow, open_many_files


def send(
    port: int, attacks: dict[str, list[Attack]], seed: int, ending: threading.Event, found: Counter
) -> None:
    """Draw a kind, then one of it, and send it."""
    rng = random.Random(seed)
    while not ending.is_set():
        kind = rng.choice(list(attacks))
        attack = rng.choice(attacks[kind])
        try:
            status, _ = attack.send(port, 120.0)
        except OSError as error:
            status = None
            found[f"{kind}: {type(error).__name__}"] += 1
        found[kind] += 1
        if status is not None and status >= 500:
            found[f"{kind}: {status} ({attack.name})"] += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--slow", type=int, default=200, help="connections of each slow kind")
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="of attacks, such as pictures; all unless given")
    args = parser.parse_args()
    os.nice(5)  # what it computes for itself is no load that a stranger could put on a server
    open_many_files(4096)
    attacks: dict[str, list[Attack]] = {}
    for attack in all_attacks(500, args.megabytes * MIB, 300):
        if args.kinds is None or attack.kind in args.kinds:
            attacks.setdefault(attack.kind, []).append(attack)
    found: Counter = Counter()
    ending = threading.Event()
    threads = [
        threading.Thread(target=send, args=(args.port, attacks, args.seed + at, ending, found))
        for at in range(args.threads)
    ]
    print("ready", flush=True)
    with (
        Slow(args.port, args.slow, HEAD, 5.0),
        Slow(args.port, args.slow, BODY, 5.0),
        Slow(args.port, args.slow, b"", None),
    ):
        for thread in threads:
            thread.start()
        sys.stdin.read()
        ending.set()
        for thread in threads:
            thread.join()
    print(json.dumps(dict(sorted(found.items()))))


if __name__ == "__main__":
    main()
