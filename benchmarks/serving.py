"""What serving costs: `pixedge serve` beside the same engine driven directly, and how soon answers begin.

    python benchmarks/serving.py --model models/demo-pixedge-4bit

Throughput: 1 and 8 answers of --tokens tokens at a time, in pairs of a round through a server process (chunks
read over a socket) and a round of Engine.submit and Engine.step in this process; the stop id is taken from
both, so that answers go on. First token: --clients at a time, each asking --asks times about a picture of its
own, from the request's first byte to the first text. Turns: a question about a picture, then one more about
it. The last line is JSON.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pixedge
from pixedge.model import Model
from pixedge.sampling import Sampler

PICTURE = Path(__file__).parents[1] / "models" / "demo" / "pictures" / "shapes.png"
CONTEXT = 16384


def picture(seed: int) -> str:
    """Give a picture's data: URL; another seed gives a picture that no cache knows."""
    with Image.open(PICTURE) as image:
        pixels = np.array(image.convert("RGB"))
    pixels[0, :3, 0] = [seed >> 16 & 255, seed >> 8 & 255, seed & 255]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def turns(url: str, *texts: str) -> list[dict[str, Any]]:
    """Give a conversation about a picture: question, answer, question."""
    first = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": texts[0]}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    for index, text in enumerate(texts[1:]):
        messages.append({"role": "user" if index % 2 else "assistant", "content": text})
    return messages


# Through the server


@contextlib.contextmanager
def server(model: Path, threads: int | None, *, endless: bool) -> Iterator[int]:
    """Run the server as a process of its own; gives its port."""
    command = [sys.executable, __file__, "--model", str(model), "--serve", "endless" if endless else "plain"]
    command += ["--threads", str(threads)] if threads else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"at http://[\d.]+:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        port = int(found[1])
        asyncio.run(_wait_ready(port))
        yield port
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def serve_here(model: Path, threads: int | None, *, endless: bool) -> None:
    """Be that process."""
    from pixedge.serve.server import address, listen, serve
    from pixedge.serve.settings import Settings

    loaded = load(model, threads, endless=endless)
    sock = listen("127.0.0.1", 0)
    url = address(sock, tls=False)
    serve(
        loaded,
        Settings(("model",)),
        sock,
        started=lambda: print(f"at {url}", file=sys.stderr, flush=True),
    )


def load(model: Path, threads: int | None, *, endless: bool) -> Model:
    """Load the model; endless answers end at their length alone."""
    loaded = pixedge.load(model, context=CONTEXT, threads=threads)
    if endless:
        loaded.engine.stop_ids = frozenset()
    return loaded


async def _wait_ready(port: int) -> None:
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        if b" 200 " in answer[:20]:
            return
        await asyncio.sleep(0.05)


async def ask(port: int, messages: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """Ask with ``stream``; return seconds to the first text and to the end, and the usage."""
    body = {
        "model": "model",
        "messages": messages,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}connection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    first: float | None = None
    received = b""
    while part := await reader.read(1 << 16):
        received += part
        if first is None and b'"delta":{"content":"' in received:
            first = time.perf_counter() - start
    end = time.perf_counter() - start
    writer.close()
    found = re.search(rb'"usage":(\{"prompt.*?\}.*?\})', received)
    if first is None or found is None or b"[DONE]" not in received:
        raise SystemExit(f"the server answered {received[:500]!r}")
    return {"first": first, "end": end, "usage": json.loads(found[1])}


async def at_once(port: int, conversations: list[list[dict[str, Any]]], tokens: int) -> list[dict[str, Any]]:
    """Ask all at the same time."""
    return await asyncio.gather(*(ask(port, messages, tokens) for messages in conversations))


def served_rate(port: int, conversations: list[list[dict[str, Any]]], tokens: int) -> float:
    """Return tokens per second from the first question to the last answer's end."""
    start = time.perf_counter()
    answers = asyncio.run(at_once(port, conversations, tokens))
    seconds = time.perf_counter() - start
    total = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert total == tokens * len(conversations)
    return total / seconds


# Directly


def direct_rate(model: Model, conversations: list[list[dict[str, Any]]], tokens: int) -> float:
    """Return the same of the engine alone, from the messages on."""
    engine = model.engine
    params = pixedge.SamplingParams(max_tokens=tokens)
    start = time.perf_counter()
    prompts = [model.tokenizer.encode(messages) for messages in conversations]
    requests = [engine.submit(prompt, Sampler(params, prompt.ids)) for prompt in prompts]
    total = 0
    while not all(request.finished for request in requests):
        engine.step()
        for request in requests:
            while request.ready:
                request.ready.popleft()
                total += 1
    seconds = time.perf_counter() - start
    assert total == tokens * len(conversations)
    return total / seconds


def throughput(
    model: Path, threads: int | None, streams: list[int], tokens: int, repeats: int
) -> list[dict[str, Any]]:
    """Compare the two, round by round."""
    loaded = load(model, threads, endless=True)
    rows = []
    with server(model, threads, endless=True) as port:
        for count in streams:
            asked = [turns(picture(index), "What is in this picture?") for index in range(count)]
            direct_rate(loaded, asked, 8)
            served_rate(port, asked, 8)
            pairs = [
                (direct_rate(loaded, asked, tokens), served_rate(port, asked, tokens)) for _ in range(repeats)
            ]
            rows.append(
                {
                    "streams": count,
                    "tokens": tokens,
                    "direct_tokens_per_second": round(statistics.median(d for d, _ in pairs), 1),
                    "served_tokens_per_second": round(statistics.median(s for _, s in pairs), 1),
                    "ratio": round(statistics.median(s / d for d, s in pairs), 4),
                    "ratios": [round(s / d, 4) for d, s in pairs],
                }
            )
    return rows


def first_tokens(port: int, clients: list[int], asks: int, seed: int) -> list[dict[str, Any]]:
    """Time the first token with several clients, each of which asks again as soon as it is answered."""

    async def client(number: int) -> list[float]:
        found = []
        for index in range(asks):
            messages = turns(picture(seed + number * asks + index), "What colour is the star?")
            found.append((await ask(port, messages, 48))["first"])
        return found

    async def all_clients(count: int) -> list[float]:
        return list(itertools.chain(*await asyncio.gather(*map(client, range(count)))))

    rows = []
    for count in clients:
        seconds = sorted(asyncio.run(all_clients(count)))
        seed += count * asks
        rows.append(
            {
                "clients": count,
                "requests": len(seconds),
                "p50_seconds": round(statistics.median(seconds), 5),
                "p99_seconds": round(seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))], 5),
            }
        )
    return rows


def second_turns(port: int, repeats: int, seed: int) -> dict[str, Any]:
    """Time the first token of a question about a new picture, and of the next one about it."""
    firsts, seconds = [], []
    cached: list[int] = []
    for index in range(repeats):
        url = picture(seed + index)
        question = "What colour is the star?"
        firsts.append(asyncio.run(ask(port, turns(url, question), 48)))
        later = turns(url, question, "The star is yellow.", "Where is the circle?")
        seconds.append(asyncio.run(ask(port, later, 48)))
        cached.append(seconds[-1]["usage"]["prompt_tokens_details"]["cached_tokens"])
    return {
        "first_turn_seconds": round(statistics.median(answer["first"] for answer in firsts), 5),
        "second_turn_seconds": round(statistics.median(answer["first"] for answer in seconds), 5),
        "ratio": round(
            statistics.median(b["first"] / a["first"] for a, b in zip(firsts, seconds, strict=True)), 3
        ),
        "cached_tokens": statistics.median(cached),
    }


def main() -> None:
    """Measure one exported folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="exported folder")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--asks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="CPU threads [all cores]")
    parser.add_argument("--serve", choices=("plain", "endless"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve_here(args.model, args.threads, endless=args.serve == "endless")
        return
    rates = throughput(args.model, args.threads, args.streams, args.tokens, args.repeats)
    for row in rates:
        print(
            f"{row['streams']} streams: {row['served_tokens_per_second']:,} tokens/s served, "
            f"{row['direct_tokens_per_second']:,} by the engine alone, ratio {row['ratio']:.3f}"
        )
    with server(args.model, args.threads, endless=False) as port:
        seed = 1 << 16
        first_tokens(port, [1], 3, 1 << 20)
        firsts = first_tokens(port, args.clients, args.asks, seed)
        for row in firsts:
            print(
                f"{row['clients']} clients: first token after {1e3 * row['p50_seconds']:.1f} ms (p50), "
                f"{1e3 * row['p99_seconds']:.1f} ms (p99)"
            )
        later = second_turns(port, args.repeats, 1 << 22)
        print(
            f"a question about a new picture: first token after {1e3 * later['first_turn_seconds']:.1f} ms, "
            f"the next one about it {1e3 * later['second_turn_seconds']:.1f} ms"
        )
    print(json.dumps({"model": str(args.model), "throughput": rates, "first_token": firsts, "turns": later}))


if __name__ == "__main__":
    main()
