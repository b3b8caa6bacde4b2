"""``pixedge chat``: a conversation about pictures, in the terminal or from a pipe."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import click

from pixedge.commands.model_options import ModelOptions, model_options
from pixedge.commands.pictures import DPI, check_sources
from pixedge.commands.plain_prompt import PlainPrompt
from pixedge.commands.sampling_options import SamplingOptions, sampling_options
from pixedge.commands.standard_input import piped_input
from pixedge.errors import OutputError, PixedgeError, UsageError
from pixedge.terminal import complain, is_dumb, note, progress

if TYPE_CHECKING:
    from pixedge.commands.chat_prompt import ChatPrompt
    from pixedge.commands.chat_session import ChatSession

_EXAMPLES = """\
\b
Examples:
  pixedge chat --image photo.jpg
  pixedge chat --load yesterday.json
  printf 'Describe a.png\\nAnd b.png?\\n' | pixedge chat > answers.txt
"""


@click.command(epilog=_EXAMPLES, short_help="Talk about pictures, turn by turn.")
@click.option(
    "--image",
    "images",
    metavar="X",
    multiple=True,
    help="Picture for the first message, as in run; repeatable [none].",
)
@DPI
@click.option("--allow-url", is_flag=True, help="Let --image and /image download http(s) addresses.")
@click.option("--system", metavar="TEXT", help="Instruction ahead of the conversation [none].")
@click.option("--load", "transcript", metavar="FILE", help="Go on with what /save wrote [a new one].")
@sampling_options
@model_options
@click.option("--no-history", is_flag=True, help="Keep no history of what is typed.")
@click.option("--quiet", is_flag=True, help="No progress and no figures, only warnings and errors.")
def chat(
    images: tuple[str, ...],
    dpi: int | None,
    allow_url: bool,
    system: str | None,
    transcript: str | None,
    sampling: SamplingOptions,
    options: ModelOptions,
    no_history: bool,
    quiet: bool,
) -> None:
    """Talk about pictures. Type /help for commands; from a pipe, each line is a message or a command."""
    check_sources(images, allow_url)
    if "-" in images:
        raise UsageError("--image - takes standard input, which the messages come from; give a file")
    if system is not None and not system.strip():
        raise UsageError("--system is empty; give it some text")
    if system is not None and transcript is not None:
        raise UsageError("--system and --load are given, but the file holds its own instruction; use /system")
    folder = options.find(quiet)
    params = sampling.params()

    from pixedge.commands.chat_session import ChatSession

    with progress(quiet=quiet) as report:
        model = options.load(folder, report, max_requests=1)
    session = ChatSession(model, params, system=system, allow_url=allow_url, dpi=dpi, quiet=quiet)
    if transcript is not None:
        session.take(f"/load {transcript}")
    if images:
        session.attach(images)
    stdin = piped_input()
    if stdin is not None:
        _from_pipe(session, stdin)
    elif sys.stdin is None or sys.stdin.closed:
        raise UsageError("standard input is closed; type into a terminal, or pipe messages in")
    else:
        _in_terminal(session, no_history, quiet)


def _from_pipe(session: "ChatSession", stdin: BinaryIO) -> None:
    """Take each line as a turn; after an error the next one is taken, and the exit code tells."""
    failed = False
    for line in _turns(stdin):
        try:
            if isinstance(line, PixedgeError):
                raise line
            if not session.take(line):
                break
        except OutputError:
            raise
        except PixedgeError as error:
            complain(str(error))
            failed = True
    if failed:
        raise click.exceptions.Exit(1)


def _turns(stdin: BinaryIO) -> Iterator[str | PixedgeError]:
    r"""Yield the lines that say something; one that ends in \ goes on in the next."""
    held = ""
    for at, raw in enumerate(stdin, 1):
        try:
            line = raw.decode("utf-8-sig" if at == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            held = ""
            yield UsageError(f"line {at} is not UTF-8 at byte {error.start}; convert it")
            continue
        if line.endswith("\\"):
            held += line[:-1] + "\n"
            continue
        if (held + line).strip():
            yield held + line
        held = ""
    if held.strip():
        yield held.rstrip("\n")


def _prompt(no_history: bool) -> "ChatPrompt | PlainPrompt":
    if is_dumb():
        return PlainPrompt()
    from pixedge.commands.chat_prompt import ChatPrompt, history_or_none

    return ChatPrompt(None if no_history else history_or_none(note))


def _in_terminal(session: "ChatSession", no_history: bool, quiet: bool) -> None:
    """Ask for turns until Ctrl-D, or Ctrl-C twice at an empty prompt."""
    prompt = _prompt(no_history)
    if not quiet:
        note("/help lists commands, Ctrl-D leaves")
    pressed = False
    while True:
        try:
            line = prompt.read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if pressed:
                return
            pressed = True
            note("Ctrl-C again, or Ctrl-D, leaves")
            continue
        pressed = False
        if not line.strip():
            continue
        try:
            if not session.take(line):
                return
        except OutputError:
            raise
        except PixedgeError as error:
            complain(str(error))
        except KeyboardInterrupt:
            note("stopped")
