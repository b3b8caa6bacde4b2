"""The ``pixedge`` command: its sub-commands, and every error as one line on stderr with an exit code.

Nothing heavy is imported here, so that help answers at once.
"""

import contextlib
import errno
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from pixedge.commands.batch import batch
from pixedge.commands.chat import chat
from pixedge.commands.count import count
from pixedge.commands.doctor import doctor
from pixedge.commands.export import export
from pixedge.commands.import_ import import_
from pixedge.commands.plan import plan
from pixedge.commands.profile import profile
from pixedge.commands.pull import pull
from pixedge.commands.report import report
from pixedge.commands.run import run
from pixedge.commands.serve import serve
from pixedge.commands.verify import verify
from pixedge.errors import PixedgeError
from pixedge.out_of_memory import out_of_memory
from pixedge.terminal import complain, flush_streams, open_closed_streams, quiet_libraries, show

_EPILOG = """\
\b
Examples:
  pixedge pull mistralai/Pixtral-12B-2409              once
  pixedge export models/Pixtral-12B-2409               once
  pixedge run --image photo.jpg "What is this?"        as often as you like

\b
Exit codes:
  0    done
  1    failed: a picture, a model or a checkpoint that cannot be used, too little memory or disk
  2    wrong usage: an option, an argument or a combination of them
  130  interrupted with Ctrl-C

\b
Answers and results go to standard output, everything else to standard error.
"""


class _Pixedge(click.Group):
    """A group whose errors are sentences."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run the command line args (without the program's name) and exit with its code."""
        open_closed_streams()
        quiet_libraries()
        # An answer may hold any character, and what the terminal cannot show must not end it.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        extra |= {"prog_name": "pixedge", "standalone_mode": False}
        # On Windows click would take a question mark in the question for a pattern of file names.
        extra["windows_expand_args"] = False
        try:
            code = super().main(args, **extra)
        except BrokenPipeError:
            code = 0
        except (click.Abort, KeyboardInterrupt):
            code = 130
        except click.exceptions.NoArgsIsHelpError as error:
            with contextlib.suppress(OSError):
                error.show()
            code = 2
        except click.ClickException as error:
            code = _fail(_usage_sentence(error), error.exit_code)
        except PixedgeError as error:
            code = _fail(str(error), error.exit_code)
        except Exception as error:
            sentence = (flush_streams() if isinstance(error, OSError) else None) or _sentence(error)
            if sentence is None:
                raise
            code = _fail(sentence, 1)
        code = code if isinstance(code, int) else 0
        unwritten = flush_streams()
        if unwritten is not None and code == 0:
            code = _fail(unwritten, 1)
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command; a closed pipe is kept from click, which would exit with 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise click.exceptions.Exit(0) from error


def _fail(sentence: str, code: int) -> int:
    complain(sentence)
    return code


def _usage_sentence(error: click.ClickException) -> str:
    """Give click's message in one line, with where to read on."""
    message = error.format_message().rstrip(". \n")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message}; see '{context.command_path if context else 'pixedge'} --help'"


def _sentence(error: Exception) -> str | None:
    """Give the sentence for a machine that ran out of something; None for what is a fault of pixedge."""
    if (full := out_of_memory(error)) is not None:
        return str(full)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space, or write to another place"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or 'a file'} cannot be used ({error.strerror}); check its permissions"
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.EBADF, errno.EIO):
        return f"a standard stream cannot be read or written ({error.strerror}); check what it is joined to"
    return None


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        import pixedge

        show(f"pixedge {pixedge.__version__}")
        ctx.exit()


@click.group(
    cls=_Pixedge,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Ask questions about pictures with Pixtral, on one consumer GPU or on a CPU alone."""


main.add_command(run)
main.add_command(batch)
main.add_command(chat)
main.add_command(serve)
main.add_command(plan)
main.add_command(count)
main.add_command(export)
main.add_command(verify)
main.add_command(doctor)
main.add_command(profile)
main.add_command(report)
main.add_command(pull)
main.add_command(import_)
