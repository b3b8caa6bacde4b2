"""The question of a command line: an argument or what is piped in, and the conversation that it makes."""

from typing import TYPE_CHECKING, Any

from pixedge.commands.standard_input import piped_input
from pixedge.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image


def read_question(question: str | None, stdin_taken: bool) -> str:
    """Give the argument, or what is piped in without its last line end."""
    if question is None:
        if stdin_taken:
            raise UsageError("--image - takes standard input; give the question as an argument")
        stdin = piped_input()
        if stdin is None:
            raise UsageError("the question is missing; give it in quotes at the end, or pipe it in")
        try:
            question = stdin.read().decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"the question piped in is not UTF-8 at byte {error.start}; convert it"
            ) from None
    check_text("the question", question)
    return question


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
