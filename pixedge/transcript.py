"""A conversation as a file of readable JSON, with its pictures by path and hash.

    {
      "pixedge_chat": 1,
      "model": "models/Pixtral-12B-2409-pixedge-4bit",
      "system": null,
      "settings": {"temperature": 0.2},
      "turns": [
        {"role": "user", "pictures": [{"source": "cat.jpg", "hash": "sha256:…"}], "text": "What is this?"},
        {"role": "assistant", "text": "A cat."}
      ]
    }

Sources are relative to the file's folder where they lie below it, so that both can move together.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixedge.answer_format import AnswerFormat
from pixedge.conversation import Attachment, Conversation, Exchange
from pixedge.errors import ImageError, MessageError, UsageError
from pixedge.sampling import SamplingParams
from pixedge.small_file import read_small_file

VERSION = 1

Attach = Callable[[str], Attachment]
"""Reads the pictures of a source; raises ImageError or UsageError."""


def write_transcript(file: Path, conversation: Conversation, params: SamplingParams, model: str) -> None:
    """Write a conversation, in one step, readable for its owner alone.

    Raises UsageError where something else than a transcript is in the way, and OSError.
    """
    if file.exists() and not is_transcript(file):
        raise UsageError(f"{file} exists and is not a conversation of pixedge chat; choose another name")
    base = file.resolve().parent
    turns: list[dict[str, Any]] = []
    for each in conversation.exchanges:
        pictures = [{"source": _from(base, one.source), "hash": one.hash} for one in each.attachments]
        asked = {"pictures": pictures} if pictures else {}
        if each.question is not None:
            turns.append({"role": "user", **asked, "text": each.question})
        if each.answer is not None:
            turns.append({"role": "assistant", "text": each.answer})
    record = {
        "pixedge_chat": VERSION,
        "model": model,
        "system": conversation.system,
        "settings": _settings(params),
        "turns": turns,
    }
    text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=base)
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def read_transcript(file: Path, attach: Attach) -> tuple[Conversation, SamplingParams]:
    """Read a conversation and its pictures, which must be what they were.

    Raises MessageError for a file that is no transcript, ImageError for a picture that is gone or changed.
    """
    record = _record(file)
    conversation = Conversation(_text(file, "system", record["system"]) if record.get("system") else None)
    turns = record.get("turns")
    if not isinstance(turns, list):
        raise MessageError(f"{file} has no list of turns; mend it")
    exchanges = conversation.exchanges
    for at, turn in enumerate(turns):
        role = turn.get("role") if isinstance(turn, dict) else None
        if role not in ("user", "assistant"):
            raise MessageError(f"{file} has a turn {at} that is not the user's or the assistant's; mend it")
        text = _text(file, f"turn {at}", turn.get("text"))
        if role == "user":
            pictures = turn.get("pictures", [])
            if not isinstance(pictures, list):
                raise MessageError(f"{file} has pictures that are no list in turn {at}; mend it")
            found = tuple(_attachment(file, each, attach) for each in pictures)
            exchanges.append(Exchange(text, found, None))
        elif exchanges and exchanges[-1].answer is None:
            exchanges[-1] = dataclasses.replace(exchanges[-1], answer=text)
        else:
            exchanges.append(Exchange(None, (), text))
    return conversation, _params(file, record.get("settings", {}))


def is_transcript(file: Path) -> bool:
    """Whether a file holds a conversation of pixedge chat."""
    try:
        _record(file)
    except (MessageError, OSError):
        return False
    return True


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_small_file(file).decode("utf-8-sig"))
    except OSError as error:
        raise MessageError(f"{file} cannot be read ({error.strerror}); give a saved conversation") from None
    except (ValueError, RecursionError):
        raise MessageError(f"{file} is not JSON; give a conversation that /save wrote") from None
    if not isinstance(record, dict) or "pixedge_chat" not in record:
        raise MessageError(f"{file} is not a conversation of pixedge chat; give one that /save wrote")
    if record["pixedge_chat"] != VERSION:
        raise MessageError(
            f"{file} has version {record['pixedge_chat']!r}, and this pixedge reads {VERSION}; update pixedge"
        )
    return record


def _text(file: Path, where: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise MessageError(f"{file} has no text in {where}; mend it")
    return value


def _attachment(file: Path, entry: object, attach: Attach) -> Attachment:
    """Read the pictures of an entry again and compare them."""
    source = entry.get("source") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(source, str) or not isinstance(entry.get("hash"), str):
        raise MessageError(f"{file} has a picture without source and hash; mend it")
    if "://" not in source:
        source = os.path.join(file.resolve().parent, source)
    found = attach(source)
    if found.hash != entry["hash"]:
        raise ImageError(
            f"{source} is not what it was when the conversation was saved; put the old picture back, or ask"
            " about the new one in a new conversation"
        )
    return found


def _from(base: Path, source: str) -> str:
    """Give a source as the file in ``base`` names it."""
    if "://" in source:
        return source
    path = Path(os.path.abspath(source))
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _settings(params: SamplingParams) -> dict[str, Any]:
    """Give what differs from the defaults."""
    default = SamplingParams()
    values = {each.name: getattr(params, each.name) for each in dataclasses.fields(params)}
    changed = {name: value for name, value in values.items() if value != getattr(default, name)}
    if params.answer_format is not None:
        changed["answer_format"] = dataclasses.asdict(params.answer_format)
    return changed


def _params(file: Path, settings: object) -> SamplingParams:
    known = {each.name for each in dataclasses.fields(SamplingParams)}
    if not isinstance(settings, dict) or not known.issuperset(settings):
        raise MessageError(f"{file} has settings that pixedge does not know; mend it")
    values = dict(settings)
    try:
        if values.get("answer_format") is not None:
            values["answer_format"] = AnswerFormat(**values["answer_format"])
        return SamplingParams(**values)
    except (UsageError, TypeError) as error:
        raise MessageError(f"{file} has a setting that cannot be used: {error}") from None
