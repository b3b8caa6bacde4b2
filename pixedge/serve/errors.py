"""Refusals in the form of OpenAI's API: a status, and an object with message, type, param and code.

status  type                    when
400     invalid_request_error   a field, message or picture that cannot be used, or that does not fit
401     authentication_error    no key, or a wrong one
403     permission_error        a page of another site, or a name that is not this server's
404     not_found_error         no such address, or no such model
405     invalid_request_error   a method that the address does not have
408     timeout_error           the body came too slowly
413     invalid_request_error   the body is too large
415     invalid_request_error   the body is not JSON
429     overloaded_error        the queue is full; Retry-After says when to ask again
500     server_error            a fault of pixedge
503     unavailable_error       starting, shutting down, or memory that has run out
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from pixedge.errors import (
    CapacityError,
    ImageError,
    MemoryFullError,
    MessageError,
    PixedgeError,
    UsageError,
)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "overloaded_error",
    500: "server_error",
    503: "unavailable_error",
}
# What each kind of error is called in "code", which programs compare.
_CODES: tuple[tuple[type[PixedgeError], str], ...] = (
    (CapacityError, "context_length_exceeded"),
    (ImageError, "invalid_image"),
    (MessageError, "invalid_messages"),
    (UsageError, "invalid_value"),
)


_LONGEST = 480


class Refusal(Exception):
    """A request that is answered with an error: a status from 400 up and a sentence for a person."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what the error object needs; param names the field at fault."""
        if len(message) > _LONGEST:  # it repeats what the client sent
            message = message[: _LONGEST - 1] + "…"
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def again(self) -> "Refusal":
        """Give the same refusal without the traceback of this one."""
        return Refusal(self.status, self.message, param=self.param, code=self.code, headers=self.headers)

    def body(self) -> dict[str, Any]:
        """Give the object that goes to the client."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Give the whole answer."""
        return json_response(self.body(), self.status, self.headers)


def refusal(error: Exception, param: str | None = None) -> Refusal:
    """Turn what the library raises into a refusal; anything but a PixedgeError is a fault of the server's."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MemoryFullError):
        return Refusal(503, str(error), code="out_of_memory")
    if isinstance(error, PixedgeError):
        for kind, code in _CODES:
            if isinstance(error, kind):
                if issubclass(kind, (ImageError, MessageError)):  # both tell the message by its index
                    param = param or "messages"
                return Refusal(400, str(error), param=param, code=code)
        return Refusal(500, str(error), code="model_error")
    return Refusal(500, "the server failed on this request; its log says why", code="internal_error")


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Give an object as JSON that no cache keeps and no browser takes for anything else."""
    content = json.dumps(value).encode()
    fixed = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(content, status, fixed | dict(headers or {}), "application/json")
