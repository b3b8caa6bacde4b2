"""A chat in a terminal: keys, history and completion; once in a real pseudo-terminal."""

import contextlib
import json
import os
import select
import signal
import stat
import sys
import time

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from pixedge.commands import chat_prompt
from pixedge.commands.chat_prompt import ChatCompleter, ChatPrompt, history_or_none, open_history
from pixedge.commands.chat_session import COMMANDS
from pixedge.commands.chat_settings import NAMES
from tests.exported_demo import PICTURES, ROOT, environment, exported_demo

ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A"


@pytest.fixture
def typed():
    with create_pipe_input() as pipe:

        def type_keys(keys: str, history: InMemoryHistory | None = None) -> str:
            pipe.send_text(keys)
            return ChatPrompt(history, pipe, DummyOutput()).read()

        yield type_keys


# Keys


@pytest.mark.parametrize(
    "keys, line",
    [
        (f"What is it?{ENTER}", "What is it?"),
        (f"two{ALT_ENTER}lines{ENTER}", "two\nlines"),
        (f"two\\{ENTER}lines{ENTER}", "two\nlines"),
        (f"a\\b{ENTER}", "a\\b"),
        (f"gone{CTRL_C}kept{ENTER}", "kept"),
        (f"é 😀{ENTER}", "é 😀"),
        # a paste of several lines is sent when Enter is typed, not before
        (f"\x1b[200~one\ntwo\x1b[201~ three{ENTER}", "one\ntwo three"),
    ],
)
def test_keys(typed, keys, line):
    assert typed(keys) == line


def test_leaving(typed):
    with pytest.raises(EOFError):
        typed(CTRL_D)
    with pytest.raises(KeyboardInterrupt):
        typed(CTRL_C)
    with pytest.raises(KeyboardInterrupt):  # the first drops what was typed
        typed(f"text{CTRL_C}{CTRL_C}")


def test_history(typed):
    history = InMemoryHistory()
    assert typed(f"first{ENTER}", history) == "first"
    history.append_string("first")
    assert typed(f"{UP}{ENTER}", history) == "first"


# History


@pytest.fixture
def state(tmp_path, monkeypatch):
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path / "pixedge"


def test_the_history_is_for_its_owner_alone(state):
    open_history().append_string("secret")
    file = state / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and "secret" in file.read_text()
    file.chmod(0o644)
    assert list(open_history().load_history_strings()) == ["secret"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_place_for_it_there_is_none(state):
    state.parent.mkdir(exist_ok=True)
    state.write_text("a file where the folder should be")
    notes = []
    assert history_or_none(notes.append) is None
    assert "no history is kept" in notes[0]


def test_without_a_home_there_is_none(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(chat_prompt, "state_folder", homeless)
    notes = []
    assert history_or_none(notes.append) is None
    assert "there is no home folder" in notes[0]


# Completion


def completions(text: str) -> list[str]:
    found = ChatCompleter().get_completions(Document(text), CompleteEvent(completion_requested=True))
    return [text[: len(text) + each.start_position] + each.text for each in found]


def test_commands_and_settings_are_completed():
    assert completions("/") == list(COMMANDS)
    assert completions("/im") == ["/image", "/images"]
    assert completions("/set top") == ["/set top_p", "/set top_k"]
    assert completions("/set ") == [f"/set {name}" for name in NAMES]
    assert completions("What is /im") == [] or all("/im" in each for each in completions("What is /im"))
    assert completions("What") == []


def test_paths_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a cat.png").touch()
    (tmp_path / "schema.json").touch()
    assert completions("/image a") == ["/image a cat.png"]
    assert completions("/load sch") == ["/load schema.json"]
    assert completions("/set schema sch") == ["/set schema schema.json"]
    assert completions("Look at ./sch") == ["Look at ./schema.json"]
    assert completions(f"{tmp_path}/sch") == [f"{tmp_path}/schema.json"]


# A terminal


class Terminal:
    """A chat in a pseudo-terminal, as a person sees it."""

    def __init__(self, tmp_path, folder, *options: str) -> None:
        import pty

        environ = environment(tmp_path) | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.child, self.screen = pty.fork()
        if self.child == 0:
            os.chdir(ROOT)
            command = [sys.executable, "-m", "pixedge", "chat", "--model", str(folder), *options]
            os.execve(sys.executable, command, environ)
        self.seen = b""

    def see(self, text: str) -> str:
        """Wait for a text, and give everything up to its end."""
        end = time.monotonic() + 60
        while text.encode() not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen[-2000:]!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                self.seen += os.read(self.screen, 4096)
        found, _, self.seen = self.seen.partition(text.encode())
        return found.decode(errors="replace")

    def ready(self) -> None:
        """Wait for an empty prompt: pastes are asked for, and the cursor is shown."""
        self.see("\x1b[?2004h")
        self.see("\x1b[?25h")

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def leave(self) -> int:
        """Wait for the end of the chat, and give its exit code."""
        with contextlib.suppress(OSError):  # what Linux says at the end of a terminal
            while os.read(self.screen, 4096):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_a_chat_in_a_terminal(tmp_path, tmp_path_factory):
    folder = exported_demo(tmp_path_factory.getbasetemp())
    terminal = Terminal(tmp_path, folder)
    try:
        terminal.see("Ctrl-D leaves")
        terminal.ready()
        # as a terminal writes a file that is dropped into it
        terminal.type(f"\x1b[200~'{PICTURES / 'shapes.png'}' \x1b[201~What colour is the star?{ENTER}")
        terminal.see("shapes.png (176 x 128)")
        terminal.see("The star is yellow.")
        terminal.see("known from before")
        terminal.ready()
        terminal.type("/set max_tok\t")
        terminal.see("ens")  # the screen may get no more than what is new
        terminal.type(f" 3500{ENTER}")
        terminal.see("\x1b[?2004l")
        terminal.see("max_tokens 3500")
        terminal.ready()
        terminal.type(f"/set regex (red|green)( red| green){{3000}}{ENTER}")
        terminal.see("answer held to a regular expression")
        terminal.ready()
        terminal.type(f"What colour is the star?{ENTER}")
        terminal.see("\x1b[?2004l")  # from here on what comes is the answer, and no longer what is typed
        terminal.see(" green")
        terminal.type(CTRL_C)  # a key, of which the terminal makes a signal
        terminal.see("stopped; what was said so far stays")
        terminal.ready()
        terminal.type(CTRL_C)
        terminal.see("Ctrl-C again, or Ctrl-D, leaves")
        terminal.ready()
        terminal.type(CTRL_C)
        assert terminal.leave() == 0
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(terminal.child, signal.SIGKILL)
        os.close(terminal.screen)
    (file,) = tmp_path.rglob("chat_history")
    assert "What colour is the star?" in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_ctrl_d_leaves_and_the_saved_chat_is_json(tmp_path, tmp_path_factory):
    folder = exported_demo(tmp_path_factory.getbasetemp())
    terminal = Terminal(tmp_path, folder, "--no-history", "--quiet")
    try:
        terminal.ready()
        terminal.type(f"How are you?{ENTER}")
        terminal.see("\x1b[?2004l")
        terminal.ready()
        terminal.type(f"/save {tmp_path}/talk.json{ENTER}")
        terminal.see("saved 1 turn")
        terminal.ready()
        terminal.type(CTRL_D)
        assert terminal.leave() == 0
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(terminal.child, signal.SIGKILL)
        os.close(terminal.screen)
    assert json.loads((tmp_path / "talk.json").read_text())["turns"][0]["text"] == "How are you?"
    assert not list(tmp_path.rglob("chat_history"))
