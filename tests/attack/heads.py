"""Heads of requests as no client sends them; none may make a server answer 500 or write a traceback."""

import random
import socket

NAMES = (
    *("Host", "Origin", "Authorization", "Content-Type", "Content-Length", "Transfer-Encoding", "Expect"),
    *("Connection", "Upgrade", "Referer", "Cookie", "Accept", "Accept-Encoding", "Range", "If-None-Match"),
    *(
        "Access-Control-Request-Method",
        "Access-Control-Request-Headers",
        "Access-Control-Request-Private-Network",
    ),
    *(
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "Forwarded",
        "Sec-WebSocket-Key",
        "Trailer",
        "TE",
        "Via",
        "Date",
    ),
)
VALUES = (
    *(
        "http://[",
        "http://[::1",
        "https://]",
        "http://[v1.x]",
        "//[",
        "[",
        "]",
        "http://[::1]:x",
        "://",
        "http://",
    ),
    *("http://a:99999999999", "http://\xe9", "http://127.0.0.1:8000/[", "null", "*", "", " ", "\t", ","),
    *(
        "[::1]:0",
        "[::ffff:1.2.3.4]:1",
        "127.0.0.1:-1",
        "127.0.0.1:9e9",
        "127.0.0.1@[",
        "localhost:[",
        "a:b:c",
    ),
    *(
        "\xff\xfe",
        "\x80",
        "\x85",
        "%",
        "%00",
        "%ff%fe",
        "\u00b2",
        "9" * 400,
        "-1",
        "0x10",
        "1e3",
        "NaN",
        "1_0",
    ),
    *(
        "Bearer",
        "Bearer \xff",
        "Bearer [",
        "Basic Og==",
        "bearer  x  y",
        "application/json; charset=[",
        "a/b;c",
    ),
    *("application/json", "chunked", "identity", "gzip, chunked", "100-continue", "close", "keep-alive"),
    *("websocket", "h2c", "Upgrade", "upgrade, close", "bytes=0-", '"', "'", "\\", "x" * 9_000),
)
PATHS = (
    *("/", "/health", "/v1/models", "/v1/models/[", "/v1/models/%ff", "/v1/chat/completions", "/metrics"),
    *("//[", "/[", "/%", "/%00", "/%5B", "*", "http://[/", "http://[::1", "//", "/?[", "/?%ff=%", "/%2e%2e/"),
    *("/openapi.json?[", "/v1/models/%0d%0aX: y", "/" + "x" * 9_000, "/%f0%9f%98%80", "/;a=b"),
)
METHODS = ("GET", "POST", "OPTIONS", "HEAD", "PUT", "DELETE", "TRACE", "CONNECT", "PRI", "get", "X-Y", "!")


def random_head(rng: random.Random) -> bytes:
    """Draw a head, perhaps with a body; most of them are well-formed but for their values."""
    lines = [f"{rng.choice(METHODS)} {rng.choice(PATHS)} HTTP/1.{rng.choice('1111110')}"]
    if rng.random() < 0.8:
        lines.append("Host: 127.0.0.1")
    for _ in range(rng.randint(0, 5)):
        lines.append(f"{rng.choice(NAMES)}: {rng.choice(VALUES)}")
    body = rng.choice(
        [b"", b"", b"{}", b"0\r\n\r\n", b"5\r\nhello\r\nzz\r\n", bytes(50), b"GET / HTTP/1.1\r\n\r\n"]
    )
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    if rng.random() < 0.2:
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(rng.randint(0, 3)) + data[at + rng.randint(0, 3) :]
    return data


def each_value() -> list[bytes]:
    """Give every value in every header, and every path, once."""
    heads = []
    for method in ("GET", "POST", "OPTIONS"):
        for path in PATHS:
            heads.append(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    for name in NAMES:
        for value in VALUES:
            host = "" if name == "Host" else "Host: 127.0.0.1\r\n"
            heads.append(f"GET /nothing HTTP/1.1\r\n{host}{name}: {value}\r\n\r\n")
    return [head.encode("latin-1") for head in heads]


def exchange(port: int, data: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes, say that no more come, and give all that the server says."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            while part := line.recv(1 << 16):
                heard += part
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
    return heard
