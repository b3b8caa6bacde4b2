"""``pixedge batch``: the same question about many pictures, or a file of requests; answers as JSON lines."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixedge.commands.dropped_paths import read_message
from pixedge.commands.model_options import ModelOptions, model_options
from pixedge.commands.pictures import DPI, check_sources
from pixedge.commands.sampling_options import SamplingOptions, sampling_options
from pixedge.errors import UsageError
from pixedge.terminal import duration, note, progress, show_json

if TYPE_CHECKING:
    from pixedge.batch.answer_file import AnswerFile
    from pixedge.batch.item import Inputs
    from pixedge.batch.work import Tally
    from pixedge.sampling import SamplingParams

_REQUESTS = ".jsonl"

_EXAMPLES = """\
\b
Examples:
  pixedge batch photos/ --prompt "Describe this picture." --out answers.jsonl
  pixedge batch 'scans/*.pdf' --prompt "Read this invoice." --schema invoice.json --out invoices.jsonl
  pixedge batch requests.jsonl --out answers.jsonl

\b
The same command goes on where it was stopped, and tries again what failed. Exit code 0: every item has
its answer; 1: some failed, and their lines say why.
"""


@dataclass(frozen=True)
class Doors:
    """What requests of a file may open."""

    allow_url: bool
    hosts: tuple[str, ...]
    folder: Path | None


@click.command(epilog=_EXAMPLES, short_help="Ask about many pictures, or answer a file of requests.")
@click.argument("sources", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="File of answers [none].")
@click.option("--prompt", metavar="TEXT", help="Question about each picture [none].")
@click.option("--system", metavar="TEXT", help="Instruction ahead of the question [none].")
@DPI
@click.option("--each-page", is_flag=True, help="Ask about each page of a PDF by itself.")
@click.option("--allow-url", is_flag=True, help="Let sources be http(s) addresses of pictures.")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Host of requests' pictures; repeatable [none].",
)
@click.option(
    "--media-dir", type=click.Path(path_type=Path), metavar="DIR", help="Folder for file: URLs [none]."
)
@sampling_options
@click.option("--logprobs", type=int, metavar="N", help="N likeliest tokens beside each token [off].")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end: counts and seconds.")
@click.option("--quiet", is_flag=True, help="No progress and no figures, only warnings and errors.")
@click.pass_context
def batch(
    ctx: click.Context,
    sources: tuple[str, ...],
    options: ModelOptions,
    sampling: SamplingOptions,
    out: Path | None,
    prompt: str | None,
    system: str | None,
    dpi: int | None,
    each_page: bool,
    allow_url: bool,
    hosts: tuple[str, ...],
    media_dir: Path | None,
    logprobs: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask --prompt about every picture of SOURCES: folders, files, 'patterns', PDF documents.

    SOURCES may also be one file of requests (.jsonl) in the form of OpenAI's batch API. Answers are appended
    to --out, a line of JSON each.
    """
    start = time.perf_counter()
    if out is None:
        raise UsageError("--out is missing; give the file that answers go to, as answers.jsonl")
    doors = Doors(allow_url, hosts, media_dir)
    if any(source.lower().endswith(_REQUESTS) for source in sources):
        _check_requests(ctx, sources)
        folder = options.find(quiet)
        inputs = _request_file(sources[0], doors)
    else:
        question = _check_question(sources, prompt, system, doors)
        folder = options.find(quiet)
        names = _files(sources, each_page, dpi, quiet)
        params = sampling.params(logprobs=logprobs)
        inputs = _picture_files(names, question, system, params, dpi, options.max_image_size)
    items = inputs.items

    from pixedge.batch.answer_file import AnswerFile

    with AnswerFile(out) as file:
        finished = file.finished({item.id: item.digest for item in items})
        todo = [index for index, item in enumerate(items) if item.id not in finished]
        if finished and not quiet:
            note(f"{len(finished):,} of {len(items):,} have their answer in {out} already")
        tally = _work(inputs, todo, file, options, folder, quiet)
        file.put_in_order(item.id for item in items)
    seconds = time.perf_counter() - start
    if as_json:
        show_json(_record(out, len(items), len(finished), tally, seconds))
    if not quiet:
        note(_figures(tally, seconds))
    if tally.failed:
        assert tally.first_failure is not None
        name, sentence = tally.first_failure
        note(f"failed first: {sentence if name in sentence else f'{name}: {sentence}'}")
        raise click.exceptions.Exit(1)


def _work(
    inputs: "Inputs", todo: list[int], file: "AnswerFile", options: ModelOptions, folder: Path, quiet: bool
) -> "Tally":
    """Load the model and answer what is to be done, with progress; Ctrl-C ends the command with 130."""
    from pixedge.batch.work import Tally, answer_all

    if not todo:
        return Tally()
    done = 0
    try:
        with progress(quiet=quiet) as report:
            model = options.load(folder, report)
            begun = time.perf_counter()

            def show(tally: Tally) -> None:
                nonlocal done
                done = tally.done
                rate = tally.completion_tokens / (time.perf_counter() - begun)
                failed = f", {tally.failed:,} failed" if tally.failed else ""
                report("answers", done, len(todo), f"{done:,}/{len(todo):,}{failed}, {rate:.0f} tokens/s")

            report("answers", 0, len(todo))
            return answer_all(model, inputs, todo, file, show)
    except KeyboardInterrupt:
        note(f"stopped with {len(todo) - done:,} to go; the same command goes on from here")
        raise click.exceptions.Exit(130) from None


def _check_requests(ctx: click.Context, sources: tuple[str, ...]) -> None:
    """A file of requests says itself what is asked: options that would be ignored are refused."""
    if len(sources) > 1:
        raise UsageError(f"{sources[0]} and {sources[1]} are given; a file of requests is given alone")
    own = {"prompt", "system", "dpi", "each_page", "logprobs", "allow_url"} | set(
        SamplingOptions.__dataclass_fields__
    )
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in own and source is not None and source.name != "DEFAULT":
            raise UsageError(
                f"{parameter.opts[0]} is given, but each request of {sources[0]} says that itself; leave "
                "it out"
            )


def _check_question(sources: tuple[str, ...], prompt: str | None, system: str | None, doors: Doors) -> str:
    if prompt is None:
        raise UsageError("--prompt is missing; give the question that each picture is asked, in quotes")
    for name, text in (("--prompt", prompt), ("--system", system)):
        if text is not None and not text.strip():
            raise UsageError(f"{name} is empty; give it some text")
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError(f"{name} is not valid text in the terminal's encoding; write it in UTF-8")
    message = read_message(prompt)
    if message.paths:
        raise UsageError(
            f"--prompt names the picture {message.paths[0]}; give it before --prompt, as a source"
        )
    for name in message.doubtful:
        note(f"{name} in --prompt is not a file here; the model gets its name and no picture")
    if doors.hosts or doors.folder is not None:
        option = "--allow-host" if doors.hosts else "--media-dir"
        raise UsageError(f"{option} is for a file of requests; leave it out")
    if "-" in sources:
        raise UsageError("- is standard input, which a batch cannot read twice; give files")
    check_sources(sources, doors.allow_url)
    return prompt


def _request_file(source: str, doors: Doors) -> "Inputs":
    from pixedge.batch.request_file import RequestFile
    from pixedge.image import ImageLimits
    from pixedge.serve.media import AllowedHost, MediaSettings

    hosts = tuple(AllowedHost.parse(host) for host in doors.hosts)
    return RequestFile(Path(source), MediaSettings(hosts, doors.folder, ImageLimits()))


def _files(sources: tuple[str, ...], each_page: bool, dpi: int | None, quiet: bool) -> list[str]:
    """Find the files, or the pages where each is asked about by itself."""
    from pixedge.batch.picture_files import find_files, name_pages
    from pixedge.documents import split_pages

    names, others = find_files(sources)
    documents = [name for name in names if split_pages(name)[0].lower().endswith(".pdf")]
    for option, given in (("--dpi", dpi is not None), ("--each-page", each_page)):
        if given and not documents:
            raise UsageError(f"{option} is for the pages of a PDF, and none was given; leave it out")
    if others and not quiet:
        files = "1 other file" if others == 1 else f"{others:,} other files"
        note(f"left out: {files} in the folders, no pictures by their names")
    return name_pages(names) if each_page else names


def _picture_files(
    names: list[str],
    prompt: str,
    system: str | None,
    params: "SamplingParams",
    dpi: int | None,
    max_image_size: int | None,
) -> "Inputs":
    from pixedge.batch.picture_files import PictureFiles, Question

    return PictureFiles(names, Question(prompt, system, params, dpi, max_image_size))


def _record(out: Path, items: int, before: int, tally: "Tally", seconds: float) -> dict[str, Any]:
    """Give the object of --json."""
    return {
        "out": str(out),
        "items": items,
        "finished_before": before,
        "answered": tally.answered,
        "failed": tally.failed,
        "prompt_tokens": tally.prompt_tokens,
        "image_tokens": tally.image_tokens,
        "completion_tokens": tally.completion_tokens,
        "seconds": round(seconds, 3),
    }


def _figures(tally: "Tally", seconds: float) -> str:
    """Give the line at the end."""
    parts = [f"{tally.answered:,} answered"]
    parts += [f"{tally.failed:,} failed"] if tally.failed else []
    if tally.answered:
        parts.append(f"prompts {tally.prompt_tokens:,} tokens ({tally.image_tokens:,} from pictures)")
        parts.append(f"answers {tally.completion_tokens:,} tokens")
    return ", ".join([*parts, duration(seconds)])
