"""How an answer is chosen and what it must match: options of every command that asks a model.

A command takes them all with ``@sampling_options`` and gets one ``SamplingOptions``:

    @click.command()
    @sampling_options
    def ask(sampling: SamplingOptions, ...) -> None:
        params = sampling.params()
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixedge.errors import UsageError
from pixedge.small_file import read_small_file

if TYPE_CHECKING:
    from pixedge.answer_format import AnswerFormat
    from pixedge.sampling import SamplingParams


@dataclass(frozen=True)
class SamplingOptions:
    """Values of the options; but for the last three they mean what ``SamplingParams`` says.

    schema and grammar are names of files, regex is the expression itself.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    def params(self, **more: Any) -> "SamplingParams":
        """Check the values and read the files; more: fields of SamplingParams that no option has.

        Raises UsageError.
        """
        from pixedge.sampling import SamplingParams

        files = ("schema", "regex", "grammar")
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in files}
        return SamplingParams(**values, answer_format=self.answer_format(), **more)

    def answer_format(self) -> "AnswerFormat | None":
        """Give what the answer must match; raises UsageError."""
        given = {"--schema": self.schema, "--regex": self.regex, "--grammar": self.grammar}
        names = [name for name, value in given.items() if value is not None]
        if not names:
            return None
        if len(names) > 1:
            raise UsageError(f"{' and '.join(names)} are given, but an answer matches one of them; give one")
        from pixedge.answer_format import AnswerFormat

        if self.schema is not None:
            return AnswerFormat.from_schema(_read("--schema", self.schema))
        if self.grammar is not None:
            return AnswerFormat.from_lark(_read("--grammar", self.grammar))
        assert self.regex is not None
        return AnswerFormat.from_regex(self.regex)


def _read(option: str, name: str) -> str:
    try:
        return read_small_file(Path(name)).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{option} {name} cannot be read ({error.strerror}); give a file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {name} is not UTF-8 at byte {error.start}; convert it") from None


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them together as ``sampling``."""

    @functools.wraps(command)
    def with_options(*args: Any, **values: Any) -> Any:
        own = {field.name: values.pop(field.name) for field in fields(SamplingOptions)}
        return command(*args, sampling=SamplingOptions(**own), **values)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


_OPTIONS = (
    click.option(
        "--max-tokens", type=int, default=1024, metavar="N", help="Longest answer, in tokens [1024]."
    ),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the likeliest; above 0 varies [0].",
    ),
    click.option(
        "--top-p", type=float, default=1.0, metavar="P", help="Draw among the likeliest that reach P [1]."
    ),
    click.option(
        "--top-k", type=int, default=0, metavar="K", help="Draw among the K likeliest; 0 is all [0]."
    ),
    click.option(
        "--min-p", type=float, default=0.0, metavar="P", help="Drop what is below P x the likeliest [0]."
    ),
    click.option(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="Above 1 avoids repetition [1]."
    ),
    click.option(
        "--presence-penalty", type=float, default=0.0, metavar="X", help="-2 to 2, once for a used token [0]."
    ),
    click.option(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="-2 to 2, for each use of a token [0].",
    ),
    click.option("--seed", type=int, metavar="N", help="Same seed, same answer [random]."),
    click.option(
        "--stop", metavar="TEXT", multiple=True, help="End the answer before TEXT; repeatable [none]."
    ),
    click.option("--schema", metavar="FILE", help="Answer in JSON that a JSON schema allows [any text]."),
    click.option("--regex", metavar="R", help="Answer that a regular expression matches [any text]."),
    click.option("--grammar", metavar="FILE", help="Answer that a Lark grammar allows [any text]."),
)
