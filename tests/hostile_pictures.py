"""Pictures that ask for more work than they are worth, and what a text question waits beside them.

    python -m tests.hostile_pictures FOLDER [--senders 64] [--questions 200]

The server runs as a process; the last line is JSON.
"""

import argparse
import base64
import contextlib
import io
import json
import struct
import tempfile
import threading
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
from PIL import Image


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, body, checksum=None):
    """A PNG's chunk, also with a wrong checksum."""
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def scans(count, side=7000):
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + b"\xff\xd9"


def tiled(count, width, height, side):
    """A TIFF of small tiles, which all lie in one place."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 322: side, 323: side}
    at = 8 + 2 + 12 * 10 + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [
        struct.pack("<HHII", tag, 4, count, at + 4 * count * index) for index, tag in enumerate((324, 325))
    ]
    places = struct.pack(f"<{count}I", *[at] * count) + struct.pack(f"<{count}I", *[side * side] * count)
    return b"II*\0" + struct.pack("<IH", 8, 10) + b"".join(entries) + bytes(4) + places


def rle(bits, width, height, codes):
    """A BMP of runs, with 16 colours."""
    colours = b"".join(bytes([value * 10, value * 5, value, 0]) for value in range(16))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, 0, 0, 0, 16, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 64) + head + colours + codes


PNG = encoded(Image.new("RGB", (4, 4)), "PNG")

REFUSED = {
    "500 scans of 7000 x 7000": (lambda: scans(500), "more than 100 JPEG scans"),
    "340,000 Exif segments": (
        lambda: b"\xff\xd8\xff" + b"\xff\xe1\0\x0aExif\0\0AB" * 340_000,
        "more than 100,000 JPEG segments",
    ),
    "tables": (lambda: b"\xff\xd8\xff" + b"\xff\xdd\0\4\0\0" * 5_000, "more than 2,000 JPEG tables"),
    "empty IDAT": (lambda: PNG[:33] + chunk(b"IDAT", b"") * 200_000, "more than 100,000 chunks"),
    "GIF blocks": (lambda: b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1a" * 200_000, "more than 100,000 blocks"),
    "WebP chunks": (lambda: b"RIFF\0\0\0\0WEBP" + b"abcd\0\0\0\0" * 20_000, "more than 10,000 chunks"),
    "runs of nothing": (lambda: rle(8, 99, 99, b"\0\2\0\0" * 3_000_000), "too many runs"),
    "tiles of a pixel": (lambda: tiled(250_000, 500, 500, 1), "250,000 strips or tiles"),
    "tags": (lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(800_000), "more than 10,000 tags"),
}
"""Files, and what their refusal says."""

COSTLY = {
    "90 scans of 7000 x 7000": lambda: scans(85),
    "a flat PNG of 7000 x 7000": lambda: encoded(Image.new("RGBA", (7000, 7000)), "PNG"),
    "a flat WebP of 7000 x 7000": lambda: encoded(Image.new("RGB", (7000, 7000)), "WebP", lossless=True),
    "runs of one pixel": lambda: rle(8, 7000, 7000, b"\1\1" * 2_000_000),
    "160,000 tiles": lambda: tiled(160_000, 6400, 6400, 16),
}
"""Files that take as long as is allowed."""


def ask(url, content):
    body = {"model": "any", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    body["model"] = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)


def latencies(url, count):
    """Seconds that text questions take, one after the other."""
    found = []
    for index in range(count):
        start = time.perf_counter()
        answer = ask(url, f"What is {index}?")
        found.append(time.perf_counter() - start)
        assert answer.status_code == 200, answer.text[:200]
    return found


def measure(folder, base, senders=64, questions=200):
    """Give the seconds of text questions alone and beside hostile pictures, and the pictures' statuses."""
    from tests.serving import Process

    files = [make() for make in (*COSTLY.values(), *(make for make, _ in REFUSED.values()))]
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in files]
    done: list[int] = []
    ending = threading.Event()
    with Process(base, "--model", folder, "--queue", 2 * senders) as server:

        def send(number):
            while not ending.is_set():
                parts = [{"type": "image_url", "image_url": {"url": urls[number % len(urls)]}}]
                with contextlib.suppress(httpx.HTTPError):  # the server has ended
                    done.append(ask(server.url, [*parts, {"type": "text", "text": "What?"}]).status_code)
                number += 1

        latencies(server.url, 5)
        alone = latencies(server.url, questions)
        threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(senders)]
        for thread in threads:
            thread.start()
        time.sleep(5)
        beside = latencies(server.url, questions)
        ending.set()
    return alone, beside, done


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--senders", type=int, default=64)
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        alone, beside, done = measure(options.folder, Path(base), options.senders, options.questions)
    figures = {}
    for name, row in {"alone": alone, f"beside {options.senders} hostile pictures": beside}.items():
        median, late, worst = np.percentile(row, [50, 99, 100])
        figures[name] = {"p50": round(median, 3), "p99": round(late, 3), "worst": round(worst, 3)}
        print(f"{name:32} p50 {median:.3f} s  p99 {late:.3f} s  worst {worst:.3f} s")
    statuses = {str(code): done.count(code) for code in sorted(set(done))}
    print(json.dumps(figures | {"pictures answered by status": statuses}))


if __name__ == "__main__":
    main()
