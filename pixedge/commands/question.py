"""The question of a command line: arguments or what is piped in, and the conversation that it makes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pixedge.commands.dropped_paths import Message, read_message
from pixedge.commands.standard_input import piped_input
from pixedge.errors import UsageError
from pixedge.path_patterns import irregular
from pixedge.terminal import note

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Question:
    """What is asked, and the pictures that the command line names: --image first, then those in the text."""

    text: str | None
    pictures: tuple[str, ...]


def read_question(arguments: Sequence[str], images: Sequence[str], *, optional: bool = False) -> Question:
    """Read the question from the arguments, or from a pipe; pictures that are named there are taken out.

    An argument may be a picture by itself, or begin with one. images: those of --image. optional: pictures
    may stand without a question. Raises UsageError, and ImageError for a name that leads to no picture.
    """
    messages = [
        Message("", (each,)) if len(arguments) > 1 and _is_file(each) else read_message(each)
        for each in arguments
    ]
    texts = [message.text for message in messages if message.text.strip() or not message.paths]
    if len(texts) > 1:
        raise UsageError(
            f"the question is given in {len(texts)} parts, {texts[0]!r:.40} and {texts[1]!r:.40}; put quotes "
            "around all of it"
        )
    named = [path for message in messages for path in message.paths]
    if not texts and not (optional and (named or images)):
        piped = _piped_question("-" in images)
        # a line is what a person types; more lines are text from elsewhere, and names in it are names
        message = Message(piped, ()) if "\n" in piped else read_message(piped)
        messages.append(message)
        texts, named = [message.text], [*named, *message.paths]
    for name in (name for message in messages for name in message.doubtful):
        note(f"{name} is not a file here; the model gets its name and no picture")
    for text in texts:
        check_text("the question", text)
    given = {os.path.realpath(image) for image in images}
    added = [path for path in dict.fromkeys(named) if os.path.realpath(path) not in given]
    return Question(texts[0] if texts else None, (*images, *added))


def _is_file(argument: str) -> bool:
    return os.path.lexists(argument) and irregular(argument) is None


def _piped_question(stdin_taken: bool) -> str:
    """Give what is piped in without its last line end."""
    if stdin_taken:
        raise UsageError("--image - takes standard input; give the question as an argument")
    stdin = piped_input()
    if stdin is None:
        raise UsageError("the question is missing; give it in quotes at the end, or pipe it in")
    try:
        return stdin.read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the question piped in is not UTF-8 at byte {error.start}; convert it") from None


def check_text(name: str, text: str) -> None:
    """Refuse text that is empty, or that the terminal gave in another encoding than its own (UsageError)."""
    if not text.strip():
        raise UsageError(f"{name} is empty; give it some text")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{name} is not valid text in the terminal's encoding; write it in UTF-8")


def conversation(
    question: str | None, system: str | None, pictures: list["Image.Image"]
) -> list[dict[str, Any]]:
    """Make a conversation of one turn, its pictures ahead of the question."""
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    if question is not None:
        content.append({"type": "text", "text": question})
    turn = {"role": "user", "content": content}
    return [turn] if system is None else [{"role": "system", "content": system}, turn]
