"""Who may speak to the server: by which name it was called, from which page, and with which key.

A page of any site can make a visitor's browser send requests to 127.0.0.1, and by changing what its own name
resolves to (DNS rebinding) it can read the answers too. So a server without keys answers only to names that
no stranger can make point at it: addresses, localhost, and those that it was started with. And whatever was
sent by a page of another origin is refused unless that origin was allowed.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pixedge.serve.errors import Refusal
from pixedge.serve.settings import Settings

# What tells nothing and computes nothing; the page asks for the key itself.
_OPEN = {"/", "/health"}


class Origins:
    """Refuses requests under a name, or from a page, that this server does not belong to."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Stand before ``app``."""
        self._app = app
        self._check_host = not settings.keys
        self._hosts = {host.lower() for host in settings.hosts}
        self._origins = set(settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http" and (found := self._refusal(scope)) is not None:
            await found.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._check_host and not self._known(host):
            return Refusal(
                403,
                f"this server does not go by the name {host[:80]!r}; call it by its address, or start it "
                "with that --name or with a key",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return None
        # https as well as http: a proxy in front may speak TLS
        if origin in (f"http://{host}", f"https://{host}"):
            return None
        return Refusal(
            403,
            f"pages of {origin[:80]!r} may not use this server; it can be started with --cors for them",
            code="foreign_origin",
        )

    def _known(self, host: str) -> bool:
        """Say whether a Host header names an address, this machine, or a name given."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Locked:
    """Asks for a key wherever something is told or computed."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Stand before ``app``."""
        self._app, self._keys = app, settings.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http" and self._keys and scope["path"] not in _OPEN:
            kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not self._keys.open(key.strip().encode("latin-1")):
                said = "the API key is wrong" if key else "the API key is missing"
                found = Refusal(
                    401,
                    f"{said}; send it as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
                await found.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)
