"""The same question about many pictures: folders, patterns and documents, each file an item."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pixedge import picture_formats
from pixedge.batch.item import Asked, Item
from pixedge.commands.pictures import expand_sources, is_url, note_left_out, read_source
from pixedge.documents import choose_pages, count_pages, split_pages
from pixedge.errors import ImageError, UsageError
from pixedge.image import ImageLimits, image_grid
from pixedge.model import Model
from pixedge.path_patterns import irregular, natural_key
from pixedge.sampling import SamplingParams

ENDINGS = {*picture_formats.ENDINGS, ".pdf"}
"""What files in a folder are asked about, by the endings of their names."""


@dataclass(frozen=True)
class Question:
    """What is asked about each picture, and how the answer is chosen; dpi is for the pages of documents."""

    prompt: str
    system: str | None
    params: SamplingParams
    dpi: int | None = None
    max_image_size: int | None = None

    def digest(self) -> str:
        """Return 16 hexadecimal digits that differ between questions."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def messages(self, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """Give the conversation: the instruction, the pictures, the question."""
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": self.prompt}]}
        return [turn] if self.system is None else [{"role": "system", "content": self.system}, turn]


class PictureFiles:
    """Files to be asked the same question; see `find_files` for which they are."""

    def __init__(self, names: Iterable[str], question: Question, limits: ImageLimits | None = None) -> None:
        """Take the names, each of which becomes an item's id; one that comes twice is asked once."""
        self._question = question
        self._limits = limits or ImageLimits()
        digest = question.digest()
        self.items: Sequence[Item] = tuple(Item(name, digest) for name in dict.fromkeys(names))

    def read(self, index: int, model: Model) -> Asked:
        """Decode a file's pictures and build its prompt; see Inputs."""
        start = time.perf_counter()
        question, eye = self._question, model.config.vision
        caps = [size for size in (question.max_image_size, model.max_image_size) if size is not None]
        longest = min(*caps, eye.image_size) if caps else eye.image_size
        name = self.items[index].id
        pictures = read_source(name, self._limits, question.dpi, lambda: longest).pictures
        # Before the pixels are made, which take a hundred times the memory of the count.
        grids = [image_grid(*picture.size, longest, eye.patch_size) for picture in pictures]
        model.engine.room(sum(across * down for across, down in grids), 1)
        prompt = model.tokenizer.encode(question.messages(pictures), longest, self._limits)
        model.engine.room(len(prompt.ids), question.params.max_tokens)
        logprobs = question.params.logprobs is not None
        return Asked(prompt, (question.params,), logprobs, time.perf_counter() - start)


def find_files(sources: Sequence[str]) -> tuple[list[str], int]:
    """Return the files that sources name, and how many files in folders are no pictures.

    A folder stands for the pictures and PDF files in it and below it, by the endings of their names, but not
    for hidden ones; a pattern for the files that it matches; anything else for itself. Files come in natural
    order, page2 before page10, folder by folder.

    Raises ImageError for a folder without pictures and for a pattern without a match, and UsageError for
    pages of a document that are named wrongly. What is named like a picture and is no file is left out and
    noted.
    """
    names: list[str] = []
    left_out: list[str] = []
    others = 0
    for source in expand_sources(sources):
        if not os.path.isdir(source):
            names.append(_tidy(source))
            continue
        found, rest = _walk(source, left_out)
        if not found:
            note_left_out(left_out)
            raise ImageError(f"{source} holds no pictures and no PDF by their names; give another folder")
        names += found
        others += rest
    note_left_out(left_out)
    return names, others


def name_pages(names: Sequence[str]) -> list[str]:
    """Replace each PDF by its pages, report.pdf by report.pdf[1], report.pdf[2] and so on.

    A document that cannot be opened stays as it is: its own error tells why when its turn comes.
    """
    limits, named = ImageLimits(), []
    for name in names:
        file, pages = (name, None) if os.path.lexists(name) else split_pages(name)
        if is_url(name) or not file.lower().endswith(".pdf"):
            named.append(name)
            continue
        try:
            count = count_pages(Path(file), file, limits)
            chosen = choose_pages(file, count, pages, count)
        except (ImageError, UsageError):
            named.append(name)
            continue
        named += [f"{file}[{number}]" for number in chosen]
    return named


def _walk(folder: str, left_out: list[str]) -> tuple[list[str], int]:
    """Find a folder's pictures; count its other files, and add what is no file to left_out."""
    found: list[str] = []
    others = 0
    for where, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if name[0] != "."), key=natural_key)
        seen = [name for name in files if name[0] != "."]
        wanted = [name for name in seen if Path(name).suffix.lower() in ENDINGS]
        others += len(seen) - len(wanted)
        for name in sorted(wanted, key=natural_key):
            path = _tidy(os.path.join(where, name))
            if (what := irregular(path)) is None:
                found.append(path)
            else:
                left_out.append(f"{path}, {what}")
    return found, others


def _tidy(name: str) -> str:
    """Spell a path in one way, so that `photos/` and `./photos` give the same ids; addresses stay."""
    if "://" in name:
        return name
    return os.path.normpath(name).replace(os.sep, "/")
