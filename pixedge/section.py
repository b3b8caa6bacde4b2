"""One JSON object read strictly: every key is asked for, ignored by name, or an error."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pixedge.errors import CheckpointError, ConfigError

# The default of a key that has none.
REQUIRED: Final[object] = object()

MAX_JSON_BYTES = 64 << 20
"""Pixtral-12B's largest, its tokenizer, has 15 MB."""


class Section:
    """A JSON object of a configuration file; its errors (ConfigError) name the file and the key.

    A key that is null counts as absent for has(); elsewhere it means the argument `null`.
    """

    def __init__(self, data: object, file: str | Path, path: str = "") -> None:
        """Wrap `data`; `path` leads to it inside the file, ending in a dot where it is not empty."""
        if not isinstance(data, Mapping):
            name = f": {path.rstrip('.')}" if path else ""
            raise ConfigError(f"{file}{name} is {data!r:.60}, but it must be a JSON object")
        self._data: Mapping[str, Any] = data
        self._file, self._path = file, path
        self._seen: set[str] = set()

    def has(self, key: str) -> bool:
        """Tell whether the key is there and not null."""
        return self._data.get(key) is not None

    @property
    def stated(self) -> frozenset[str]:
        """Give the keys that are there and not null."""
        return frozenset(key for key, value in self._data.items() if value is not None)

    def section(self, key: str) -> "Section":
        """Give the JSON object under a key."""
        return Section(self._take(key, REQUIRED), self._file, f"{self._path}{key}.")

    def integer(self, key: str, default: object = REQUIRED, null: object = None) -> int:
        """Give a positive whole number."""
        value = self._take(key, default, null)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ConfigError(f"{self._name(key)} is {value!r:.60}, but it must be a positive whole number")
        return value

    def number(self, key: str, default: object = REQUIRED) -> float:
        """Give a positive, finite number."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_positive(value):
            raise ConfigError(f"{self._name(key)} is {value!r:.60}, but it must be a positive number")
        return float(value)

    def only(self, key: str, *supported: object, default: object, null: object = None) -> None:
        """Accept only the supported values of a key; an absent key means `default`."""
        value = self._take(key, default, null)
        # 0 == False and 1 == True in Python, but not in JSON.
        if not any(
            value == other and isinstance(value, bool) == isinstance(other, bool) for other in supported
        ):
            self._refuse(key, value, " or ".join(json.dumps(other) for other in supported))

    def window(self, key: str, context: int, default: object) -> None:
        """Accept a sliding window only where it never hides a token: none, or at least the context."""
        value = self._take(key, default)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= context):
            return
        self._refuse(key, value, f"null or at least the context of {context}")

    def finish(self, ignored: frozenset[str]) -> None:
        """Refuse the keys that nothing has asked for, except those ignored, private (`_name`) or empty."""
        left = self._data.keys() - self._seen - ignored
        unknown = sorted(
            key for key in left if not key.startswith("_") and self._data[key] not in (None, {}, [], "")
        )
        if unknown:
            more = f" (and neither are {', '.join(unknown[1:4])})" if len(unknown) > 1 else ""
            raise ConfigError(
                f"{self._name(unknown[0])} is {self._data[unknown[0]]!r:.60}, but that key is not one that "
                f"pixedge knows{more}"
            )

    def _take(self, key: str, default: object, null: object = None) -> object:
        self._seen.add(key)
        value = self._data.get(key, default)
        if value is REQUIRED:
            raise ConfigError(f"{self._file} has no {self._path}{key}, which a Pixtral checkpoint must state")
        return null if value is None else value

    def _refuse(self, key: str, value: object, supported: str) -> None:
        absent = "" if key in self._data else " by default, as the key is absent"
        shown = json.dumps(value, default=repr)
        raise ConfigError(f"{self._name(key)} is {shown:.60}{absent}; pixedge supports only {supported}")

    def _name(self, key: str) -> str:
        return f"{self._file}: {self._path}{key}"


def is_positive(value: float) -> bool:
    """Tell whether a number is above zero and finite."""
    return 0 < value <= sys.float_info.max


def read_json(file: Path, most: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of a folder; CheckpointError names the file and what is wrong with it.

    More than ``most`` bytes are not read, and neither is what is not a file, such as a named pipe.
    """
    try:
        if not file.is_file():
            raise CheckpointError(f"{file} is not a file; fetch it again")
        if (size := file.stat().st_size) > most:
            raise CheckpointError(f"{file} has {size:,} bytes and the limit is {most:,}; fetch it again")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); fetch it again") from error
