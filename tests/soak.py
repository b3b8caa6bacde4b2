"""Ask a model many questions of random sizes and say how much memory it held; the last line is JSON.

    python -m tests.soak FOLDER [--requests 200] [--context 4096] [--seed 0] [load's arguments as JSON]

Held is what the system cannot take back: all of the process but its mapped model files, which are cache.
"""

import argparse
import json
import random
import re
import threading
import time
from pathlib import Path

import numpy as np

import pixedge
from pixedge.engine import Engine
from pixedge.mapped_files import mapped_bytes
from pixedge.model import Model
from pixedge.request import Request
from pixedge.sampling import Sampler, SamplingParams
from pixedge.tokenizer import Prompt

MOST = 8
"""Requests under way at a time."""


class Meter:
    """The most anonymous memory that the process has held since it was last asked, seen every few ms."""

    def __init__(self) -> None:
        self._page = 4096
        self._peak = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def _now(self) -> int:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return self._page * (resident - shared)

    def _watch(self) -> None:
        while True:
            now = self._now()
            with self._lock:
                self._peak = max(self._peak, now)
            time.sleep(0.004)

    def take(self) -> int:
        """Give the peak and begin anew."""
        with self._lock:
            peak, self._peak = max(self._peak, self._now()), 0
        return peak


def code_bytes(folder: Path) -> int:
    """Give the bytes of files in memory that are no model's: programs and libraries."""
    status = Path("/proc/self/status").read_text()
    files = re.search(r"^RssFile:\s+(\d+) kB", status, re.MULTILINE)
    assert files is not None
    return 1024 * int(files[1]) - mapped_bytes(folder)


def random_request(model: Model, rng: random.Random, longest: int) -> tuple[Prompt, SamplingParams]:
    """Draw a prompt of up to ``longest`` tokens, often with pictures, and an answer that may be short."""
    eye, vocab = model.config.vision, model.config.decoder.vocab_size
    most = eye.image_size // eye.patch_size
    room = rng.randint(8, longest - 16)
    ids, pictures = [1], []
    while rng.random() < 0.7 and len(pictures) < 4:
        rows, columns = rng.randint(1, most), rng.randint(1, most)
        row = [eye.image_token_id] * columns
        if len(ids) + rows * (columns + 1) > room:
            break
        ids += [*row, eye.image_break_token_id] * rows
        ids[-1] = eye.image_end_token_id
        shape = (3, rows * eye.patch_size, columns * eye.patch_size)
        pictures.append(np.random.default_rng(rng.randrange(50)).standard_normal(shape, dtype=np.float32))
    special = max(model.tokenizer.special_ids) + 1
    ids += [rng.randrange(special, vocab) for _ in range(rng.randint(1, max(1, room - len(ids))))]
    count = ids.count(eye.image_token_id)
    params = SamplingParams(max_tokens=rng.randint(1, 12), temperature=1.0, seed=rng.randrange(1000))
    return Prompt(tuple(ids), tuple(pictures), count), params


def largest_request(model: Model, longest: int) -> tuple[Prompt, SamplingParams]:
    """Give the prompt that takes most at once: the largest picture, then text to the end of the cache."""
    eye = model.config.vision
    most = eye.image_size // eye.patch_size
    ids = [1, *([eye.image_token_id] * most + [eye.image_break_token_id]) * most]
    ids[-1] = eye.image_end_token_id
    pixels = np.zeros((3, eye.image_size, eye.image_size), np.float32)
    ids += [model.config.decoder.vocab_size - 1] * (longest - len(ids) - 16)
    return Prompt(tuple(ids), (pixels,), most * most), SamplingParams(max_tokens=4)


def submit(engine: Engine, prompt: Prompt, params: SamplingParams) -> Request:
    return engine.submit(prompt, Sampler(params, prompt.ids))


def finish(engine: Engine, requests: list[Request]) -> None:
    while any(not request.finished for request in requests):
        engine.step()
    for request in requests:
        if request.error is not None:
            raise request.error


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("load", nargs="?", type=json.loads, default={})
    args = parser.parse_args()
    meter, rng = Meter(), random.Random(args.seed)
    model = pixedge.load(args.folder, device="cpu", context=args.context, max_requests=MOST, **args.load)
    engine, plan = model.engine, model.plan
    assert plan is not None
    loading = meter.take()
    longest = min(args.context, model.config.decoder.context)
    finish(engine, [submit(engine, *largest_request(model, longest))])
    for _ in range(4):  # fills the cache and the kept pictures
        finish(engine, [submit(engine, *random_request(model, rng, longest // 2)) for _ in range(MOST)])
    warm = meter.take()
    # The same requests twice: what they take at most depends on their mix, so only a second time can tell
    # whether anything is left behind.
    passes: list[list[int]] = []
    for _ in range(2):
        rng, peaks, done = random.Random(args.seed + 1), [], 0
        while done < args.requests // 2:
            batch = rng.randint(1, min(MOST, args.requests // 2 - done))
            lengths = [rng.choice([64, longest // 4, longest]) for _ in range(batch)]
            finish(engine, [submit(engine, *random_request(model, rng, length)) for length in lengths])
            done += batch
            peaks.append(meter.take())
        passes.append(peaks)
    code = code_bytes(args.folder)
    print(
        json.dumps(
            {
                "requests": 2 * done,
                "planned": plan.total,
                "unfilled": plan.kept_pictures - engine.runner.pictures.held,
                "components": plan.to_json()["device"],
                "loading": loading + code,
                "warm": warm + code,
                "peaks": [[peak + code for peak in peaks] for peaks in passes],
                "code": code,
            }
        )
    )


if __name__ == "__main__":
    main()
