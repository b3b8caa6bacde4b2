"""A server of a small random model in the test's own process, and what is sent to its doors."""

import base64
import contextlib
import functools
import io
import json
import struct
import zlib
from pathlib import Path

from PIL import Image
from starlette.testclient import TestClient

import pixedge
from pixedge.serve.app import create_app
from pixedge.serve.settings import Settings
from tests.small_exports import small_export

CHAT = "/v1/chat/completions"


@functools.cache
def small_model(base: Path):
    """Load the small random model; its answers are nonsense and go on until they are cut."""
    return pixedge.load(small_export(base), device="cpu")


@contextlib.contextmanager
def door(base: Path, **settings):
    """Serve without sockets, as 127.0.0.1, from a warm engine."""
    app = create_app(small_model(base), Settings(("small",), **settings))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        while client.get("/health").status_code != 200:
            assert app.state.service.state != "failed"
        client.service = app.state.service
        yield client


def question(text="What?", *pictures, **fields):
    """Give a request with addresses of pictures."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    content = [*parts, {"type": "text", "text": text}] if pictures else text
    return {"model": "small", "messages": [{"role": "user", "content": content}], "max_tokens": 2, **fields}


def error_of(response, status):
    """Check an answer's status and OpenAI's error form; give the sentence."""
    assert response.status_code == status, response.text[:300]
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500
    return error["message"]


def data_url(data: bytes, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(size=(20, 12), colour="teal"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, pixels=b"", extra=b""):
    """Make a PNG whose header says what it likes."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = header + extra + png_chunk(b"IDAT", zlib.compress(pixels, 9)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def post(client, body, **headers):
    """Send a body as it is."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(CHAT, content=body, headers={"content-type": "application/json", **named})
