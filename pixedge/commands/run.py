"""``pixedge run``: one question, any number of pictures, the answer on standard output."""

import time
from typing import TYPE_CHECKING, Any

import click

from pixedge.commands import answer_figures
from pixedge.commands.model_options import ModelOptions, model_options
from pixedge.commands.pictures import DPI, check_sources, longest_side, read_pictures
from pixedge.commands.question import check_text, conversation, read_question
from pixedge.commands.sampling_options import SamplingOptions, sampling_options
from pixedge.commands.stages import show_stages
from pixedge.errors import OutputError, UsageError
from pixedge.terminal import note, progress, say, show_json

if TYPE_CHECKING:
    from pixedge.model import Answer, Model
    from pixedge.sampling import SamplingParams

_EXAMPLES = """\
\b
Examples:
  pixedge run --image photo.jpg "What is written on the sign?"
  pixedge run --image 'report.pdf[2-5]' "What do these pages say?"
  pixedge run --image 'scans/page*.png' --json "Give the totals." > totals.json
  pixedge run --image invoice.png --schema invoice.json "Read this invoice."
  curl -s https://example.com/a.png | pixedge run --image - "What is this?"
"""


@click.command(epilog=_EXAMPLES, short_help="Ask a question about pictures.")
@click.argument("words", nargs=-1, metavar="[PICTURE]... [QUESTION]")
@click.option(
    "--image",
    "images",
    metavar="X",
    multiple=True,
    help="File, 'pattern', PDF, x.pdf[2-5], - (stdin), URL; repeatable [none].",
)
@DPI
@click.option("--allow-url", is_flag=True, help="Let --image download http(s) addresses.")
@click.option("--system", metavar="TEXT", help="Instruction ahead of the conversation [none].")
@sampling_options
@click.option("--logprobs", type=int, metavar="N", help="With --json: N likeliest beside each token [off].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is complete.")
@model_options
@click.option("--quiet", is_flag=True, help="No progress and no figures, only warnings and errors.")
def run(
    words: tuple[str, ...],
    options: ModelOptions,
    sampling: SamplingOptions,
    images: tuple[str, ...],
    dpi: int | None,
    allow_url: bool,
    system: str | None,
    logprobs: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask QUESTION, with pictures before it in the order given. Without QUESTION it is read from a pipe.

    Pictures are given with --image, as arguments, or as paths in the question itself.
    """
    start = time.perf_counter()
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs is reported in JSON only; add --json")
    check_sources(images, allow_url)
    question = read_question(words, images)
    check_sources(question.pictures, allow_url)
    if not quiet:
        for name in question.pictures[len(images) :]:
            note(f"attached {name}")
    if system is not None:
        check_text("--system", system)
    folder = options.find(quiet)
    params = sampling.params(logprobs=logprobs)
    cap = options.max_image_size
    with progress(quiet=quiet) as report:
        pictures, decode_seconds = read_pictures(
            question.pictures, dpi, lambda: longest_side(folder, cap), report
        )
        loaded = options.load(folder, report, max_requests=1)
    messages = conversation(question.text, system, pictures)
    answer = _answer(loaded, messages, params, options.max_image_size, silent=as_json, quiet=quiet)
    if as_json:
        result = answer_figures.record(answer, loaded, folder, decode_seconds, time.perf_counter() - start)
        if logprobs is not None:
            result["logprobs"] = answer_figures.logprobs(answer, loaded)
        show_json(result)
    if answer.finish_reason == "length":
        note(answer_figures.cut(answer, params))
    if not quiet:
        note(answer_figures.figures(answer, loaded, len(pictures)))


def _answer(
    model: "Model",
    messages: list[dict[str, Any]],
    params: "SamplingParams",
    max_image_size: int | None,
    silent: bool,
    quiet: bool,
) -> "Answer":
    """Get the answer, and unless silent write it to standard output as it comes, ended by a line end."""
    show = (lambda _: None) if silent else say
    try:
        with show_stages(quiet) as on_stage:
            stream = model.stream(messages, params, max_image_size=max_image_size, on_stage=on_stage)
            pieces = iter(stream)
            first = next(pieces, "")
        show(first)
        for piece in pieces:
            show(piece)
    except (BrokenPipeError, OutputError):
        raise
    except BaseException as error:
        show("\n")
        if isinstance(error, KeyboardInterrupt):
            raise click.exceptions.Exit(130) from None
        raise
    show("\n")
    return stream.answer
