"""Bodies that a server must refuse: large, wide, deep, many, slow to read, or simply wrong."""

import base64
import json

MIB = 1 << 20
EMOJI = "\N{GRINNING FACE}"


def question(text="What?", *urls, **fields):
    """Give the body of a request."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": text}] if urls else text
    return {"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": 2, **fields}


def encoded(body, *, ascii_only=False):
    return json.dumps(body, ensure_ascii=ascii_only).encode()


def bodies(size=8 * MIB):
    """Give name and bytes of bodies of up to ``size`` bytes; each is refused with a status below 500."""
    payload = base64.b64encode(bytes(size // 2)).decode()
    url = "data:image/png;base64,"
    wide = EMOJI + "x" * (size - 200)
    return {
        "text": encoded(question("x" * (size - 200))),
        "text with an emoji": encoded(question(wide)),
        "text with an escaped emoji": encoded(question(wide), ascii_only=True),
        "text of emoji": encoded(question(EMOJI * (size // 5))),
        "text of escaped emoji": encoded(question(EMOJI * (size // 13)), ascii_only=True),
        "wide text that says it is base64": encoded(question(EMOJI + url + payload)),
        "base64 with an emoji": encoded(question("What?", url + payload + EMOJI)),
        "base64 with an escaped emoji": encoded(question("What?", url + payload + EMOJI), ascii_only=True),
        "an emoji, and base64 of nothing": encoded(question(EMOJI, url + payload)),
        "base64 of a quarter, four times": encoded(question(EMOJI, *[url + payload[: size // 8 * 4]] * 2)),
        "base64 that ends in a backslash": encoded(question("What?", url + payload + "\\")),
        "a key of base64": encoded({url + payload: 1}),
        "quotes": encoded(question('"' * (size // 2 - 200))),
        "an unknown field": encoded(question(nonsense="x" * (size // 2))),
        "a wide unknown field": encoded(question(nonsense=wide[: size // 2])),
        "a wide ignored field": encoded(question(metadata=wide[: size // 2], n=0)),
        "empty objects": b"[" + b"{}," * (size // 3 - 10) + b"{}]",
        "empty objects, as many as may be": b"[" + b"{}," * 499_000 + b"{}]",
        "objects of one field": encoded(question(messages=[{"role": {"a": 1}}] * 4000)),
        "messages": encoded(question(messages=[{"role": "user", "content": "x"}] * 5000)),
        "parts": encoded(question(messages=[{"role": "x", "content": [{"type": "text"}] * 100_000}])),
        "nested lists": b"[" * (size // 2) + b"]" * (size // 2),
        "nested lists, not closed": b"[" * size,
        "a string without end": b'{"model": "' + b"x" * (size - 20),
        "a base64 string without end": b'{"model": "data:;base64,' + b"x" * (size - 30),
        "noise": bytes(range(256)) * (size // 256),
        "zeros": bytes(size),
        "UTF-16": encoded(question("x") | {"model": "another"}).decode().encode("utf-16"),
        "digits": b'{"seed": ' + b"9" * (size - 20) + b"}",
        "a model's name": encoded(question() | {"model": "x" * (size // 2)}),
        "another model": encoded(question() | {"model": "another"}),
        "a role": encoded(question(messages=[{"role": "root", "content": "x" * 1000}])),
        "a prompt that does not fit": encoded(question("word " * 100_000)),
        "blanks": encoded(question(" " * 1_040_000)),
        "a schema": encoded(
            question(
                response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 200_000]}}}
            )
        ),
        "a picture of a file": encoded(question("x", "file:///etc/passwd")),
        "a picture of another host": encoded(question("x", "http://169.254.169.254/latest/meta-data/")),
        "a picture that is none": encoded(question("x", url + "AAAA")),
        "a thousand pictures": encoded(question("x", *[url + "AAAA"] * 1000)),
    }
