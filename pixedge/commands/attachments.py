"""Pictures that are attached to a message, with what tells whether the same are found there later."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixedge.commands.pictures import is_url, read_source
from pixedge.conversation import Attachment
from pixedge.path_patterns import irregular

if TYPE_CHECKING:
    from PIL import Image

    from pixedge.image import ImageLimits


def read_attachment(
    name: str, limits: "ImageLimits", dpi: int | None, longest: Callable[[], int]
) -> Attachment:
    """Read the pictures of one file, document or address; arguments and errors are those of read_source."""
    found = read_source(name, limits, dpi, longest)
    return Attachment(name, _hash(name, found.pictures), tuple(found.pictures))


def _hash(name: str, pictures: Sequence["Image.Image"]) -> str:
    """Give the hash of a file's bytes, or of pixels where they cannot be read again (addresses, pipes)."""
    from pixedge.documents import split_pages

    file = name if Path(name).exists() else split_pages(name)[0]
    if not is_url(name) and irregular(file) is None:
        with open(file, "rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    return f"sha256-of-pixels:{digest.hexdigest()}"
