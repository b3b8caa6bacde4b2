"""The line that a person types into a chat: history, several lines, completion of commands and paths."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.output.defaults import create_output

from pixedge.commands.chat_session import COMMANDS
from pixedge.commands.chat_settings import NAMES
from pixedge.last_export import state_folder

_FILES = ("/image ", "/save ", "/load ")


class ChatPrompt:
    """Asks for the next message or command."""

    def __init__(
        self, history: History | None = None, input: Input | None = None, output: Output | None = None
    ) -> None:
        """Prepare the terminal, or the input and output given."""
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_keys(),
            history=history or InMemoryHistory(),
            completer=ChatCompleter(),
            complete_while_typing=False,
            input=input,
            # the prompt is no part of the answers, which may go to a file
            output=output or create_output(always_prefer_tty=True),
        )

    def read(self) -> str:
        """Return what was typed; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C, at an empty prompt."""
        return self._session.prompt()


def open_history() -> History:
    """Open the history of chats in the user's state folder, readable for nobody else.

    Raises OSError where it cannot be kept there, RuntimeError when the user has no home.
    """
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "chat_history"
    os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    os.chmod(file, 0o600)  # one that was there may have been open to others
    return FileHistory(str(file))


class ChatCompleter(Completer):
    """Completes commands, names of settings, and paths after commands that take one or within a message."""

    def __init__(self) -> None:
        """Prepare the completion of paths."""
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what the text before the cursor can become."""
        text = document.text_before_cursor
        if text.startswith("/") and " " not in text and "/" not in text[1:]:
            for name, (argument, purpose) in COMMANDS.items():
                if name.startswith(text):
                    yield Completion(
                        name, -len(text), display=f"{name} {argument}".strip(), display_meta=purpose
                    )
        elif text.startswith("/set "):
            typed = text.removeprefix("/set ")
            for name in NAMES:
                if name.startswith(typed):
                    yield Completion(name, -len(typed))
            if typed.startswith(("schema ", "grammar ")):
                yield from self._path(typed.partition(" ")[2], complete_event)
        elif command := next((each for each in _FILES if text.startswith(each)), None):
            yield from self._path(text.removeprefix(command), complete_event)
        elif (word := document.get_word_before_cursor(WORD=True)).startswith(("/", "./", "../", "~/")):
            yield from self._path(word, complete_event)

    def _path(self, typed: str, complete_event: CompleteEvent) -> Iterable[Completion]:
        yield from self._paths.get_completions(Document(typed), complete_event)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        r"""Send the message; after a \ begin a new line in its place."""
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        """Begin a new line."""
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        """Drop what was typed; where nothing was, let the chat decide."""
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


def history_or_none(note: Any) -> History | None:
    """Open the history; where it cannot be kept, say why and do without."""
    try:
        return open_history()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "there is no home folder"
        note(f"no history is kept: {Path(getattr(error, 'filename', None) or 'it').name} ({reason})")
        return None
