"""``pixedge run``: one question, any number of pictures, the answer on standard output."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from pixedge.commands import answer_figures
from pixedge.commands.model_options import ModelOptions, model_options
from pixedge.commands.pictures import check_sources, read_pictures
from pixedge.commands.standard_input import piped_input
from pixedge.errors import UsageError
from pixedge.terminal import note, progress

if TYPE_CHECKING:
    from PIL import Image

    from pixedge.model import Answer, Model
    from pixedge.sampling import SamplingParams

# A model that has read a picture may repeat what stands in it, and a terminal obeys control characters.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

_EXAMPLES = """\
\b
Examples:
  pixedge run --image photo.jpg "What is written on the sign?"
  pixedge run --image 'scans/page*.png' --json "Give the totals." > totals.json
  curl -s https://example.com/a.png | pixedge run --image - "What is this?"
"""


@click.command(epilog=_EXAMPLES, short_help="Ask a question about pictures.")
@click.argument("question", required=False)
@click.option(
    "--image",
    "images",
    metavar="X",
    multiple=True,
    help="File, 'pattern', - (stdin) or URL; repeatable [none].",
)
@click.option("--allow-url", is_flag=True, help="Let --image download http(s) addresses.")
@click.option("--system", metavar="TEXT", help="Instruction ahead of the conversation [none].")
@click.option("--max-tokens", type=int, default=1024, metavar="N", help="Longest answer, in tokens [1024].")
@click.option(
    "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest; above 0 varies [0]."
)
@click.option(
    "--top-p", type=float, default=1.0, metavar="P", help="Draw among the likeliest that reach P [1]."
)
@click.option("--top-k", type=int, default=0, metavar="K", help="Draw among the K likeliest; 0 is all [0].")
@click.option(
    "--min-p", type=float, default=0.0, metavar="P", help="Drop what is below P x the likeliest [0]."
)
@click.option(
    "--repetition-penalty", type=float, default=1.0, metavar="X", help="Above 1 avoids repetition [1]."
)
@click.option(
    "--presence-penalty", type=float, default=0.0, metavar="X", help="-2 to 2, once for a used token [0]."
)
@click.option(
    "--frequency-penalty", type=float, default=0.0, metavar="X", help="-2 to 2, for each use of a token [0]."
)
@click.option("--seed", type=int, metavar="N", help="Same seed, same answer [random].")
@click.option("--stop", metavar="TEXT", multiple=True, help="End the answer before TEXT; repeatable [none].")
@click.option("--logprobs", type=int, metavar="N", help="With --json: N likeliest beside each token [off].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is complete.")
@model_options
@click.option("--quiet", is_flag=True, help="No progress and no figures, only warnings and errors.")
def run(
    question: str | None,
    options: ModelOptions,
    images: tuple[str, ...],
    allow_url: bool,
    system: str | None,
    logprobs: int | None,
    as_json: bool,
    quiet: bool,
    **sampling: Any,
) -> None:
    """Ask QUESTION, with pictures before it in the order given. Without QUESTION it is read from a pipe."""
    start = time.perf_counter()
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs is reported in JSON only; add --json")
    check_sources(images, allow_url)
    question = _read_question(question, stdin_taken="-" in images)
    if system is not None:
        _check_text("--system", system)
    folder = options.find(quiet)
    params = _params(logprobs=logprobs, **sampling)
    pictures, decode_seconds = read_pictures(images)

    with progress(quiet=quiet) as report:
        loaded = options.load(folder, report)
    messages = _messages(question, system, pictures)
    answer = _answer(loaded, messages, params, options.max_image_size, silent=as_json)
    if as_json:
        result = answer_figures.record(answer, loaded, folder, decode_seconds, time.perf_counter() - start)
        if logprobs is not None:
            result["logprobs"] = answer_figures.logprobs(answer, loaded)
        click.echo(json.dumps(result))
    if answer.finish_reason == "length":
        note(answer_figures.cut(answer, params.max_tokens))
    if not quiet:
        note(answer_figures.figures(answer, loaded, len(pictures)))


def _read_question(question: str | None, stdin_taken: bool) -> str:
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
    _check_text("the question", question)
    return question


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise UsageError(f"{name} is empty; give it some text")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{name} is not valid text in the terminal's encoding; write it in UTF-8")


def _params(**values: Any) -> "SamplingParams":
    from pixedge.sampling import SamplingParams

    return SamplingParams(**values)


def _messages(question: str, system: str | None, pictures: list["Image.Image"]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    content.append({"type": "text", "text": question})
    turn = {"role": "user", "content": content}
    return [turn] if system is None else [{"role": "system", "content": system}, turn]


def _answer(
    model: "Model",
    messages: list[dict[str, Any]],
    params: "SamplingParams",
    max_image_size: int | None,
    silent: bool,
) -> "Answer":
    """Get the answer, and unless silent write it to standard output as it comes, ended by a line end."""
    stream = model.stream(messages, params, max_image_size=max_image_size)
    controls = _CONTROLS if sys.stdout.isatty() else {}

    def say(text: str) -> None:
        # Not click.echo, which takes what looks like a colour out of the text.
        if not silent:
            sys.stdout.write(text.translate(controls))
            sys.stdout.flush()

    try:
        for piece in stream:
            say(piece)
    except BrokenPipeError:
        raise
    except BaseException as error:
        say("\n")
        if isinstance(error, KeyboardInterrupt):
            raise click.exceptions.Exit(130) from None
        raise
    say("\n")
    return stream.answer
