"""A JSON object read field by field: every field has its type, and those that nobody read are refused."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from pixedge.serve.errors import Refusal

_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


NOTHING: tuple[object, ...] = (None, "", [], {})
"""Values that ask for nothing, under whatever name."""


class Fields:
    """An object's fields; ``null`` counts as left out."""

    def __init__(self, value: object, path: str = "") -> None:
        """Take an object; path is its own place in the request, as ``response_format``.

        Raises Refusal, as all methods do, when the value is of another type.
        """
        self._path = path
        if not isinstance(value, dict):
            raise Refusal(400, f"{path or 'the body'} is {_kind(value)}; give an object", param=path or None)
        self._values: dict[str, Any] = value
        self._read: set[str] = set()

    def take(self, name: str) -> Any:
        """Give a field as it is, None where it is left out."""
        self._read.add(name)
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """Give a string."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def number(self, name: str, default: float) -> float:
        """Give a finite number."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # an integer above the largest float
                if math.isfinite(value):
                    return float(value)
        raise self._wrong(name, value, "a number")

    def integer(self, name: str) -> int | None:
        """Give a whole number; 3.0 is one too, as JSON has a single type for both."""
        value = self.take(name)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self._wrong(name, value, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        """Give true or false; false where it is left out."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return bool(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Give a string or a list of strings."""
        value = self.take(name)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(name, value, "a string or a list of strings")
        return tuple(value)

    def inner(self, name: str) -> "Fields | None":
        """Give an object's fields."""
        value = self.take(name)
        return None if value is None else Fields(value, self.path(name))

    def ignore(self, names: Sequence[str]) -> None:
        """Let these fields stand, whatever they hold."""
        self._read.update(names)

    def allow_only(self, name: str, *neutral: object) -> None:
        """Let a field stand that asks for what pixedge does not have, if it asks for nothing."""
        value = self.take(name)
        same = [each for each in neutral if isinstance(each, bool) is isinstance(value, bool)]
        if value not in NOTHING and value not in same:  # true is not 1
            raise Refusal(
                400,
                f"{self.path(name)} is not supported by pixedge; leave it out",
                param=self.path(name),
                code="unsupported_parameter",
            )

    def finish(self) -> None:
        """Refuse fields that nobody asked for, by name; what asks for nothing stands."""
        for name, value in self._values.items():
            if name not in self._read and value not in NOTHING:
                shown = self.path(name)[:80]
                shown = shown if shown.isprintable() else ascii(shown)
                raise Refusal(
                    400,
                    f"{shown} is not a field that pixedge knows; leave it out, or check its spelling",
                    param=shown,
                    code="unknown_parameter",
                )

    def path(self, name: str) -> str:
        """Give a field's place in the request."""
        return f"{self._path}.{name}" if self._path else name

    def _wrong(self, name: str, value: object, wanted: str) -> Refusal:
        path = self.path(name)
        return Refusal(400, f"{path} is {_kind(value)}; give {wanted}", param=path, code="invalid_type")


def _kind(value: object) -> str:
    if isinstance(value, str):
        shown = value if len(value) <= 40 else value[:39] + "…"
        return f"the string {shown!r}"
    return _NAMES.get(type(value), f"the number {value!r}"[:80])
