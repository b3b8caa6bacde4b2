"""``pixedge count``: how many tokens a question and its pictures take, without loading the model."""

from typing import TYPE_CHECKING, Any

import click

from pixedge.commands.model_options import MAX_IMAGE_SIZE, MODEL, ModelOptions
from pixedge.commands.pictures import DPI, check_sources, expand_sources, read_pictures
from pixedge.commands.question import check_text, conversation, read_question
from pixedge.errors import ArtifactError
from pixedge.terminal import note, show, show_json, table

if TYPE_CHECKING:
    from PIL import Image

_EXAMPLES = """\
\b
Examples:
  pixedge count --image photo.jpg "What is written on the sign?"
  pixedge count --image report.pdf --max-image-size 512 --json
"""


@click.command(epilog=_EXAMPLES, short_help="Count a question's tokens.")
@click.argument("words", nargs=-1, metavar="[PICTURE]... [QUESTION]")
@MODEL
@click.option(
    "--image",
    "images",
    metavar="X",
    multiple=True,
    help="File, PDF, 'pattern', - (stdin) or URL; repeatable [none].",
)
@DPI
@click.option("--allow-url", is_flag=True, help="Let --image download http(s) addresses.")
@click.option("--system", metavar="TEXT", help="Instruction ahead of the conversation [none].")
@MAX_IMAGE_SIZE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def count(
    words: tuple[str, ...],
    model: str | None,
    images: tuple[str, ...],
    dpi: int | None,
    allow_url: bool,
    system: str | None,
    max_image_size: int | None,
    as_json: bool,
) -> None:
    """Count the tokens of QUESTION and of each picture, and what share of the model's context they are.

    No weights are loaded: the folder needs its configuration and tekken.json alone, so a checkpoint will do.
    Without QUESTION and without pictures the question is read from a pipe.
    """
    check_sources(images, allow_url)
    question = read_question(words, images, optional=True)
    check_sources(question.pictures, allow_url)
    if system is not None:
        check_text("--system", system)
    folder = ModelOptions(model=model).find(quiet=True)
    from pixedge.config import ModelConfig
    from pixedge.tokenizer import Tokenizer

    config = ModelConfig.load(folder)
    if told := config.decoder.context_note():
        note(told)
    tekken = folder / "tekken.json"
    if not tekken.is_file():
        raise ArtifactError(f"{folder} has no tekken.json, by which text is counted; give another folder")
    tokenizer = Tokenizer(tekken, config.vision, config.decoder.vocab_size)
    side = config.vision.image_size
    names = expand_sources(question.pictures)
    pictures, _ = read_pictures(names, dpi, lambda: min(side, max_image_size or side))
    prompt = tokenizer.encode(conversation(question.text, system, pictures), max_image_size)
    if len(names) != len(pictures):  # pages of a PDF have no names of their own
        names = [str(number + 1) for number in range(len(pictures))]
    record = _record(names, pictures, prompt.images, config.vision.patch_size)
    taken = sum(picture["tokens"] for picture in record)
    context = config.decoder.context
    found = {
        "model": str(folder),
        "text_tokens": len(prompt.ids) - taken,
        "pictures": record,
        "prompt_tokens": len(prompt.ids),
        "context": context,
        "share": len(prompt.ids) / context,
    }
    if as_json:
        show_json(found)
    else:
        show("\n".join(_page(found)))


def _record(
    names: list[str], pictures: list["Image.Image"], pixels: tuple[Any, ...], patch: int
) -> list[dict[str, Any]]:
    """Describe each picture: its size before and after resizing, and its tokens with the ends of rows."""
    found = []
    for name, picture, array in zip(names, pictures, pixels, strict=True):
        height, width = array.shape[1:]
        tokens = height // patch * (width // patch + 1)
        size, resized = [picture.width, picture.height], [width, height]
        found.append({"name": name, "size": size, "resized": resized, "tokens": tokens})
    return found


def _page(found: dict[str, Any]) -> list[str]:
    rows = [
        (
            picture["name"],
            "{} x {}".format(*picture["size"]),
            "{} x {}".format(*picture["resized"]),
            f"{picture['tokens']:,}",
        )
        for picture in found["pictures"]
    ]
    rows.append(("text", "", "", f"{found['text_tokens']:,}"))
    rows.append(("prompt", "", "", f"{found['prompt_tokens']:,}"))
    left = found["context"] - found["prompt_tokens"]
    share = f"{found['share']:.1%} of the model's context of {found['context']:,} tokens"
    rest = f"{left:,} are left" if left > 0 else f"{-left:,} too many, and the answer needs some too"
    return [*table(("", "size", "resized", "tokens"), rows), f"{share}, {rest}"]
