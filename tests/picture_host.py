"""A host of pictures on 127.0.0.1 that behaves in many ways, and a table of names in the network's place."""

import contextlib
import http.server
import ipaddress
import socket
import socketserver
import threading
import time

from pixedge import fetch

BODY = b"\x89PNG" + bytes(range(256)) * 8
PUBLIC = "93.184.216.34"  # stands for any public address; connections to it are led to the local server


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        name = self.path.split("?")[0].strip("/").split("/")[0]
        getattr(self, f"reply_{name}", self.reply_missing)()
        self.close_connection = True

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def reply_missing(self):
        self.send(404)

    def reply_picture(self):
        self.send(200, BODY, Set_Cookie="a=b")

    def reply_unsized(self):
        self.send(200, BODY, Content_Length=None)

    def reply_chunked(self):
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:]))
        self.send(200, pieces + b"0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked")

    def reply_large(self):
        self.send(200, bytes(10_001))

    def reply_flood(self):
        self.send(200, bytes(1 << 20), Content_Length=None)

    def reply_short(self):
        self.send(200, BODY, Content_Length=len(BODY) + 5)

    def reply_zipped(self):
        self.send(200, BODY, Content_Encoding="gzip")

    def reply_hop(self):
        left = int(self.path.rsplit("/", 1)[1])
        self.send(302, Location=f"/hop/{left - 1}" if left else "/picture")

    def reply_to(self):
        self.send(301, Location=self.path.split("?", 1)[1])

    def reply_drip(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)

    def reply_dripping(self):
        """Headers that never end, a byte at a time."""
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)

    def reply_nonsense(self):
        self.wfile.write(b"hello\r\n\r\n")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):  # http.server's own asks the system for the host's name
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "local.test", self.server_address[1]


@contextlib.contextmanager
def serving(context=None):
    server = Server(("127.0.0.1", 0), Handler)
    server.seen = []
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def led_astray(monkeypatch):
    """A table of names; looking up anything else, or connecting to what is not loopback, fails the test."""
    table = {"local.test": ["127.0.0.1"], "public.test": [PUBLIC]}
    asked = []
    connect = socket.create_connection

    def lookup(host, port):
        asked.append(host)
        if host in table:
            return table[host]
        ipaddress.ip_address(host)  # a literal needs no look-up; anything else is an unknown name
        return [host]

    def guarded(address, timeout):
        assert address[0] in ("127.0.0.1", PUBLIC)
        return connect(("127.0.0.1", address[1]), timeout=timeout)

    monkeypatch.setattr(fetch, "_lookup", lookup)
    monkeypatch.setattr(fetch.socket, "create_connection", guarded)
    table["asked"] = asked
    return table
