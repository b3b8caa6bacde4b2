"""One hostile request, and the sets of them by kind."""

import http.client
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.attack.bodies import MIB, bodies, encoded, question
from tests.attack.heads import each_value, random_head
from tests.attack.pictures import hostile_pictures
from tests.doors import data_url
from tests.hostile_formats import hostile_format
from tests.serving import CHAT

FORMATS = {"regex": "regex", "lark": "grammar"}
NUMBERS = (
    *(
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "top_logprobs",
    ),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "max_image_size"),
)


@dataclass(frozen=True)
class Attack:
    """A name, and what is sent: the body of a chat completion, or everything as it goes over the wire."""

    kind: str
    name: str
    body: bytes | None = None
    wire: bytes = b""

    def send(self, port: int, seconds: float = 60.0) -> tuple[int | None, float]:
        """Give the status, None where the connection was closed without one, and how long it took.

        Raises TimeoutError when there is no answer in time.
        """
        start = time.monotonic()
        status = None
        try:
            if self.body is None:
                status = self._send_wire(port, seconds)
            else:
                status = self._post(port, seconds, self.body)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
            pass  # dropped while it still sent
        return status, time.monotonic() - start

    def _post(self, port: int, seconds: float, body: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
        try:
            connection.request("POST", CHAT, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def _send_wire(self, port: int, seconds: float) -> int | None:
        heard = b""
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
            line.sendall(self.wire)
            line.shutdown(socket.SHUT_WR)
            while part := line.recv(1 << 16):
                heard += part
        return int(heard[9:12]) if heard[:7] == b"HTTP/1." and heard[9:12].isdigit() else None


def head_attacks(count: int) -> Iterator[Attack]:
    rng = random.Random(1)
    for at, wire in enumerate([*each_value(), *(random_head(rng) for _ in range(count))]):
        yield Attack("heads", f"head {at}", wire=wire)


def body_attacks(size: int) -> Iterator[Attack]:
    for name, body in bodies(size).items():
        yield Attack("bodies", name, body)


def field_attacks() -> Iterator[Attack]:
    for name in NUMBERS:
        for number in ("9" * 400, "-" + "9" * 400, "1e999", "-1e400", "NaN", "1e308", "0.1e-400", "9" * 5000):
            body = encoded(question(logprobs=True, FIELD=0)).replace(
                b'"FIELD": 0', f'"{name}": {number}'.encode()
            )
            yield Attack("fields", f"{name} {number[:10]}", body)


def picture_attacks() -> Iterator[Attack]:
    for name, data in hostile_pictures().items():
        yield Attack("pictures", name, encoded(question("What?", data_url(data, "image/x"))))


def format_attacks(count: int) -> Iterator[Attack]:
    for seed in range(count):
        name, kind, text = hostile_format(seed)
        form = f'{{"type": "json_schema", "json_schema": {{"name": "a", "schema": {text}}}}}'.encode()
        if kind != "schema":
            form = encoded({"type": FORMATS[kind], FORMATS[kind]: text})
        body = encoded(question(response_format=0)).replace(
            b'"response_format": 0', b'"response_format": ' + form
        )
        yield Attack("formats", f"{name} {seed}", body)


def all_attacks(heads: int = 1000, size: int = 32 * MIB, formats: int = 200) -> Iterator[Attack]:
    """Give every set; pictures and formats are made when they are asked for."""
    yield from head_attacks(heads)
    yield from field_attacks()
    yield from body_attacks(size)
    yield from picture_attacks()
    yield from format_attacks(formats)
