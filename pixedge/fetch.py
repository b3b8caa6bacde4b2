"""Download a picture by http(s) without being led into the private network.

A name is resolved once. Every address it has must be public, and the one that was checked is the one that
is connected to, so a name that changes its answer between check and use gains nothing. The certificate is
still verified against the name. Each redirect starts again from the first check. Proxies and cookies are not
used.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from pixedge.errors import ImageError
from pixedge.image import ImageLimits
from pixedge.public_address import is_public

MAX_REDIRECTS = 5

_REDIRECTS = {301, 302, 303, 307, 308}
_INSTEAD = "download it yourself and give the file"


class AddressError(ImageError):
    """An address that may not be asked, or where nobody answers; its text may name inner addresses."""


@dataclass(frozen=True)
class _Target:
    scheme: str
    host: str  # a name in ASCII, or a literal address without brackets
    port: int
    path: str  # with the query, quoted


def fetch_image(
    url: str,
    limits: ImageLimits,
    timeout: float = 20.0,
    allow_private: bool = False,
    allowed: Callable[[str, int], bool] | None = None,
) -> bytes:
    """Return what an http(s) address holds, at most limits.max_bytes, within timeout seconds in all.

    At most MAX_REDIRECTS redirects are followed. With allow_private, addresses inside the private network are
    let through too. allowed is asked about host (in lower case) and port before every look-up, also of a
    redirect.
    Raises ImageError, naming the URL, for a refused address, a failed connection and one that takes too long
    (these as AddressError), for an answer other than 200, and when a limit is passed. The bytes are not
    looked at; that is `read_image`'s part.
    """
    shown = url if url.isprintable() else ascii(url)
    deadline = time.monotonic() + timeout
    address = url
    try:
        for _ in range(MAX_REDIRECTS + 1):
            target = _parse(address, shown)
            if allowed is not None and not allowed(target.host, target.port):
                raise AddressError(f"{shown} leads to {target.host}, which is not allowed; {_INSTEAD}")
            answer = _get(target, shown, limits, deadline, allow_private)
            if isinstance(answer, bytes):
                return answer
            address = urljoin(address, answer)
    except ImageError:
        raise
    except TimeoutError:
        raise AddressError(f"{shown} took longer than {timeout:g} s; try again, or {_INSTEAD}") from None
    except ssl.SSLCertVerificationError as error:
        raise AddressError(
            f"{shown} has no valid certificate ({error.verify_message}); {_INSTEAD}"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AddressError(f"{shown} cannot be downloaded ({reason}); check the address") from error
    raise ImageError(
        f"{shown} redirects more than {MAX_REDIRECTS} times; give the address of the picture itself"
    )


def _parse(address: str, shown: str) -> _Target:
    try:
        parts = urlsplit(address)
        port = parts.port
        host = parts.hostname or ""
        if ":" not in host:  # an IPv6 literal is ASCII, and holds what the codec refuses
            host = host.encode("idna").decode("ascii")
    except ValueError:
        raise ImageError(f"{shown} is not a valid address; check its spelling") from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        raise ImageError(f"{shown} leads to the scheme '{scheme}'; only http and https are allowed")
    if parts.username is not None or parts.password is not None:
        raise ImageError(f"{shown} leads to an address with a user name in it; {_INSTEAD}")
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", host) or port == 0:
        raise ImageError(f"{shown} is not a valid address; check its spelling")
    path = quote(parts.path or "/", safe="/%:;=@!$&'()*+,~")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:;=@!$&'()*+,~?[]")
    return _Target(scheme, host, port or (443 if scheme == "https" else 80), path)


def _get(
    target: _Target, shown: str, limits: ImageLimits, deadline: float, allow_private: bool
) -> bytes | str:
    """One request: the body, or where a redirect leads."""
    addresses = _resolve(target, shown, deadline)
    for address in addresses:
        if not allow_private and not is_public(ipaddress.ip_address(address)):
            raise AddressError(
                f"{shown} is not downloaded because {target.host} is at {address}, which is not a public "
                f"address; {_INSTEAD}"
            )
    connection = http.client.HTTPConnection(target.host, target.port)
    # Decides whether the Host header repeats the port.
    connection.default_port = 443 if target.scheme == "https" else 80
    with _connect(target, addresses, deadline) as sock:
        connection.sock = _TimedSocket(sock, deadline)
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "pixedge"}
        connection.request("GET", target.path, headers=headers)
        response = connection.getresponse()
        if response.status in _REDIRECTS and (location := response.getheader("Location")):
            return location
        if response.status != 200:
            reason = f" {response.reason}" if response.reason.isprintable() else ""  # it may hold anything
            raise ImageError(
                f"{shown} answers {response.status}{reason} instead of a picture; check the address"
            )
        return _read_body(response, shown, limits)


def _read_body(response: http.client.HTTPResponse, shown: str, limits: ImageLimits) -> bytes:
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise ImageError(
            f"{shown} is sent with the encoding '{encoding}', which was not asked for; {_INSTEAD}"
        )
    expected = response.length  # None where the server does not say
    if expected is not None and expected > limits.max_bytes:
        raise ImageError(
            f"{shown} has {expected:,} bytes and the limit is {limits.max_bytes:,}; give a smaller picture"
        )
    body = bytearray()
    while part := response.read(min(1 << 16, limits.max_bytes + 1 - len(body))):
        body += part
        if len(body) > limits.max_bytes:
            raise ImageError(
                f"{shown} has more bytes than the limit of {limits.max_bytes:,}; give a smaller picture"
            )
    if expected is not None and len(body) < expected:
        raise ImageError(f"{shown} was cut off after {len(body):,} of {expected:,} bytes; try again")
    return bytes(body)


def _lookup(host: str, port: int) -> list[str]:
    """List all addresses of a host; the system also reads forms such as 2130706433 and 0x7f.1."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _resolve(target: _Target, shown: str, deadline: float) -> list[str]:
    """Look a host up in a thread of its own: the system's resolver takes no timeout."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_lookup(target.host, target.port))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name="pixedge-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=_remaining(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception) or not answer:
        raise AddressError(
            f"{shown} cannot be downloaded because {target.host} is not known; check the address"
        )
    return answer


def _connect(target: _Target, addresses: list[str], deadline: float) -> socket.socket:
    """Connect to the first of the checked addresses that answers; TLS is verified against the host's name."""
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            sock = socket.create_connection((address, target.port), timeout=_remaining(deadline))
        except TimeoutError:
            raise
        except OSError as error:
            failure = error
            continue
        if target.scheme == "http":
            return sock
        try:
            sock.settimeout(_remaining(deadline))
            return ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
        except BaseException:
            sock.close()
            raise
    raise failure


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _TimedSocket:
    """What http.client uses of a socket, with one deadline for everything.

    A socket's own timeout starts anew with each byte that arrives, so a slow sender could hold on for ever.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(_remaining(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))

    def close(self) -> None:
        """Leave the socket open: http.client closes it before the body is read, and _get afterwards."""


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_remaining(self._deadline))
        return self._sock.recv_into(buffer)
