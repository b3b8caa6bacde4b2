"""Exported folders: which there are, whether their files are whole, and whether they compute what they did.

Imported in a process of its own only, as libraries.py is.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pixedge.doctor.finding import Finding, Subject, green, red, yellow
from pixedge.errors import PixedgeError
from pixedge.last_export import read_last_export
from pixedge.terminal import size

_AGAIN = "copy the folder again, or export again: pixedge export CHECKPOINT --force"


def find_models(named: Path | None) -> list[Path]:
    """List exported folders: the named one, $PIXEDGE_MODEL, the last export, and those in ./models.

    The first is the one that pixedge run would take. Only the first may be missing or no folder.
    """
    first: list[Path] = []
    if named is not None:
        first = [named]
    elif variable := os.environ.get("PIXEDGE_MODEL"):
        first = [Path(variable)]
    elif last := read_last_export():
        first = [last]
    try:
        beside = sorted(file.parent for file in Path("models").glob("*/pixedge.json"))
    except OSError:
        beside = []
    found: dict[Path, Path] = {}
    for folder in (*first, *beside):
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def check_models(subject: Subject) -> Iterator[Finding]:
    """Open every folder; hash the files of the one that is examined."""
    from pixedge.artifact import check_tensors, open_artifact
    from pixedge.verify import check_files

    folders = find_models(subject.model)
    if not folders:
        yield yellow(
            "model", "no exported folder was found", "pixedge export CHECKPOINT, or give --model DIR"
        )
        return
    for index, folder in enumerate(folders):
        name = "model" if index == 0 else f"other model {index}"
        try:
            artifact = open_artifact(folder)
            check_tensors(artifact)
        except PixedgeError as error:
            yield red(name, str(error), _AGAIN) if index == 0 else yellow(name, str(error), _AGAIN)
            continue
        held = sum(entry.bytes for entry in artifact.files.values())
        whole = f"{folder}, {len(artifact.files)} files, {size(held)}"
        if index:
            yield green(name, f"{whole}; sizes and tensors are right (pixedge verify reads the files whole)")
            continue
        files = check_files(artifact) if subject.prove else None
        if files is None:
            yield green(name, f"{whole}; sizes and tensors are right")
        elif files.ok:
            yield green(name, f"{whole}; every file as it was exported")
        else:
            yield red(name, f"{folder}: {files.detail.partition(';')[0]}", _AGAIN)


def check_answer(subject: Subject) -> Iterator[Finding]:
    """Load the folder, and ask it about the known picture."""
    folders = find_models(subject.model)
    if not folders:
        return
    import pixedge
    from pixedge.artifact import open_artifact
    from pixedge.verify import check_encoder, check_known_picture
    from pixedge.vision import VisionSession

    try:
        artifact = open_artifact(folders[0])
        # A short context: the known picture needs little, and a full one may take all memory.
        model = pixedge.load(folders[0], device=subject.device, context=4096)
    except PixedgeError as error:
        yield red("loading", str(error), "see the line about the model, and those above it")
        return
    encoder = check_encoder(artifact, model)
    vision = model.engine.vision
    assert isinstance(vision, VisionSession)
    provider = vision.provider
    if encoder.ok:
        yield green("encoder", f"{encoder.detail}, on {provider}")
    else:
        yield red("encoder", f"{encoder.detail.partition(';')[0]}, on {provider}", _AGAIN)
    known = check_known_picture(artifact, model)
    if known.ok:
        yield green("known picture", known.detail)
    else:
        yield red("known picture", known.detail.partition(";")[0], _AGAIN)
