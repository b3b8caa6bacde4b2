"""The settings of a chat, by name: /set temperature 0.2."""

import dataclasses
from typing import TYPE_CHECKING, Any

from pixedge.commands.sampling_options import SamplingOptions
from pixedge.errors import UsageError

if TYPE_CHECKING:
    from pixedge.sampling import SamplingParams

_FORMATS = ("schema", "regex", "grammar")
_WHOLE = frozenset({"max_tokens", "top_k", "seed"})
NAMES = tuple(each.name for each in dataclasses.fields(SamplingOptions))
"""What can be set: all that the options of the command line can."""


def change(params: "SamplingParams", name: str, value: str) -> "SamplingParams":
    """Set one value, given as text; "off" brings the default back. Raises UsageError."""
    name = name.replace("-", "_").lstrip("_")
    if name not in NAMES:
        raise UsageError(f"there is no setting {name!r}; use {', '.join(NAMES)}")
    if name in _FORMATS:
        given = {each: value if each == name and value != "off" else None for each in _FORMATS}
        options = SamplingOptions(schema=given["schema"], regex=given["regex"], grammar=given["grammar"])
        chosen = options.answer_format()
        return dataclasses.replace(params, answer_format=chosen)
    default = getattr(SamplingOptions(), name)
    return dataclasses.replace(params, **{name: default if value == "off" else _parse(name, value)})


def show_changed(params: "SamplingParams") -> str:
    """Write the settings that are not the defaults, in a line; nothing where all are."""
    default = SamplingOptions()
    plain = [each for each in NAMES if each not in _FORMATS]
    names = [each for each in plain if getattr(params, each) != getattr(default, each)]
    if params.answer_format is not None:
        names.append(_FORMATS[0])
    return ", ".join(show(params, each) for each in names)


def show(params: "SamplingParams", name: str = "") -> str:
    """Write the settings, or the one that is named, in a line."""
    name = name.replace("-", "_").lstrip("_")
    if name and name not in NAMES:
        raise UsageError(f"there is no setting {name!r}; use {', '.join(NAMES)}")
    values: dict[str, Any] = {
        each: getattr(params, each) for each in NAMES if each not in _FORMATS and (not name or each == name)
    }
    if not name or name in _FORMATS:
        chosen = params.answer_format
        values["answer"] = "any text" if chosen is None else f"held to a {chosen.noun}"
    texts = {key: " ".join(map(repr, value)) if key == "stop" else value for key, value in values.items()}
    return ", ".join(f"{key} {'none' if text in (None, '') else text}" for key, text in texts.items())


def _parse(name: str, value: str) -> Any:
    if name == "stop":
        return (value,)
    try:
        return int(value) if name in _WHOLE else float(value)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise UsageError(f"{name} is {value!r}; give {kind}, or off") from None
