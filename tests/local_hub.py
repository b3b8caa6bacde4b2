"""A small hub on localhost: as much of huggingface.co's API as pulling a model asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants

LARGE = (".safetensors", "tekken.json", ".bin", ".gguf")


@dataclass(frozen=True)
class Asked:
    """A request that the hub has had."""

    method: str
    path: str
    range: str | None
    token: str | None

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass
class LocalHub:
    """What the hub holds and how it misbehaves; tests change it between requests."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    # Repository -> the token that opens its files ("" for none at all).
    gated: dict[str, str] = field(default_factory=dict)
    # Every answer: a status and headers, or a body that no hub gives.
    refuses: tuple[int, dict[str, str]] | None = None
    babbles: bytes | None = None
    # The status of every answer, whose body never ends: block after block; how many bytes were sent.
    endless: int | None = None
    block: bytes = b" " * (1 << 16)
    sent: int = 0
    # What every answer says it is compressed with.
    encoding: str | None = None
    # The storage's answers, where large files lie.
    storage_refuses: int | None = None
    delay: threading.Event | None = None
    # File -> how many of its bytes get through before the connection ends; how often it does (None: always).
    cut: dict[str, int] = field(default_factory=dict)
    cuts_left: int | None = None
    # "none": sends everything, "wrong": begins elsewhere, "refused": 416.
    ranges: str = "right"
    # File -> what is sent in its place.
    damaged: dict[str, bytes] = field(default_factory=dict)
    # Entries of every listing that no file stands behind.
    phantoms: list[dict[str, object]] = field(default_factory=list)

    def commit(self, repo_id: str) -> str:
        files = self.repositories[repo_id]
        digests = [f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items())]
        return hashlib.sha1("\n".join(digests).encode()).hexdigest()

    def fetched(self) -> list[str]:
        """Name the files that were asked for, in order and without repeats; listings are none."""
        return list(dict.fromkeys(asked.file for asked in self.asked if "/resolve/" in asked.path))

    def ranges_of(self, name: str) -> list[str | None]:
        return [
            asked.range for asked in self.asked if asked.file == name and asked.path.startswith("/storage/")
        ]


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.asked.append(Asked(self.command, path, self.headers.get("Range"), token))
        if hub.delay is not None:
            hub.delay.wait(5)
        if path.startswith("/storage/"):
            return self._storage(path.removeprefix("/storage/"))
        if hub.endless is not None:
            return self._send_without_end(hub.endless)
        if hub.refuses is not None:
            return self._answer(*hub.refuses)
        if hub.babbles is not None:
            return self._answer(200, {"Content-Type": "text/html"}, hub.babbles)
        if path.startswith("/api/models/"):
            repo_id, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            return self._listing(repo_id, revision or "main")
        repo_id, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        return self._file(repo_id, revision, name, token)

    def _listing(self, repo_id, revision):
        if repo_id not in self.hub.repositories:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        commit = self.hub.commit(repo_id)
        if revision not in ("main", commit):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = list(self.hub.phantoms)
        for name, data in self.hub.repositories[repo_id].items():
            entry = {"rfilename": name, "size": len(data), "blobId": blob_id(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 134,
                }
            siblings.append(entry)
        data = {"id": repo_id, "sha": commit, "siblings": siblings}
        return self._answer(200, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def _file(self, repo_id, revision, name, token):
        hub = self.hub
        needed = hub.gated.get(repo_id)
        if needed is not None and token != needed:
            return self._answer(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        if revision not in ("main", hub.commit(repo_id)):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        data = hub.repositories[repo_id].get(name)
        if data is None:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": hub.commit(repo_id), "ETag": f'"{blob_id(data)}"'}
        if not name.endswith(LARGE):
            return self._answer(200, headers, hub.damaged.get(name, data))
        headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        headers["X-Linked-Size"] = str(len(data))
        # Another name of the same machine is another host, as a storage host is.
        headers["Location"] = f"{hub.address.replace('127.0.0.1', 'localhost')}/storage/{repo_id}/{name}"
        return self._answer(302, headers)

    def _storage(self, path):
        hub = self.hub
        if hub.storage_refuses is not None:
            return self._answer(hub.storage_refuses, {})
        repo_id, _, name = path.rpartition("/")
        data = hub.damaged.get(name, hub.repositories[repo_id][name])
        begin, status, headers = 0, 200, {}
        if (asked := self.headers.get("Range")) and hub.ranges != "none":
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if hub.ranges == "refused":
                return self._answer(416, {})
            begin -= begin // 2 if hub.ranges == "wrong" else 0
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        end = None
        if name in hub.cut and hub.cuts_left != 0:
            end = max(begin, hub.cut[name])
            hub.cuts_left = None if hub.cuts_left is None else hub.cuts_left - 1
        return self._answer(status, headers, data[begin:], None if end is None else end - begin)

    def _send_without_end(self, status):
        self.send_response(status)
        if self.hub.encoding is not None:
            self.send_header("Content-Encoding", self.hub.encoding)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while self.hub.sent < 1 << 30:
                self.wfile.write(self.hub.block)
                self.hub.sent += len(self.hub.block)
        except OSError:
            pass

    def _answer(self, status, headers, body=b"", cut=None):
        self.send_response(status)
        if self.hub.encoding is not None:
            self.send_header("Content-Encoding", self.hub.encoding)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that goes away in the middle is what some tests are about."""


@contextmanager
def serve_hub() -> Iterator[LocalHub]:
    """Serve an empty hub on a free port of 127.0.0.1."""
    hub = LocalHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def isolate_from_the_network(monkeypatch, home, hub: LocalHub) -> None:
    """Point huggingface_hub at the hub and at an empty home; every other address fails to resolve.

    huggingface_hub reads the environment when it is imported, so its constants are set as well.
    """
    import socket

    real = socket.getaddrinfo

    def resolve(host, *arguments, **options):
        if host in ("127.0.0.1", "localhost"):
            return real("127.0.0.1", *arguments, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    # The session keeps connections and what it knows of proxies.
    huggingface_hub.close_session()
