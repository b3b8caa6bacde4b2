"""Where an export goes: written beside its destination and moved there once it is complete.

.NAME.partial   what is being written; removed when the export fails, or at the next one if it was killed
.NAME.old       the artifact that is being replaced, for the moment between two renames
NAME            a complete artifact, or nothing
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pixedge.artifact import MANIFEST
from pixedge.errors import CapacityError, ExportError
from pixedge.terminal import size

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def destination(
    out: Path, n_bytes: int, *, force: bool, source: Path, calibration: Path | None = None
) -> Iterator[Path]:
    """Give an empty folder to write into, which becomes ``out`` when the block ends without an error.

    n_bytes: what the block will write, about. force: an artifact at ``out`` is replaced, at the end. source
    and calibration: folders that the block reads. Raises ExportError for a destination that cannot be used,
    CapacityError when the disk is or becomes too full.
    """
    place = out.resolve()  # a link to a folder is followed, so that the renames stay on one disk
    partial, old = place.with_name(f".{place.name}.partial"), place.with_name(f".{place.name}.old")
    _recover(place, old, partial)
    _check(out, place, force, source, calibration)
    try:
        try:
            _remove(partial)
            partial.mkdir(parents=True)
        except OSError as error:
            raise ExportError(
                f"{partial} cannot be made ({error.strerror}); choose another --out, or check the parent"
            ) from error
        _check_room(partial, n_bytes)
        yield partial
        _publish(partial, place, old)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise CapacityError(
                f"the disk of {place.parent} is full; free some space, or choose another --out"
            ) from error
        raise
    finally:
        _remove(partial)


def _check(out: Path, place: Path, force: bool, source: Path, calibration: Path | None) -> None:
    """Refuse to write into or over what is read, and over anything but an artifact that may be replaced."""
    if place.is_relative_to(source.resolve()):
        raise ExportError(f"{out} is the checkpoint's folder {source} or inside it; choose another --out")
    for folder in (source, calibration):
        if folder is not None and folder.resolve().is_relative_to(place):
            raise ExportError(f"{out} would replace {folder}, which is read; choose another --out")
    if not place.exists():
        return
    if os.path.ismount(place):
        raise ExportError(f"{out} is the root of a disk; choose a folder inside it, such as {out / 'model'}")
    if place.is_dir() and not any(place.iterdir()):
        return
    if not (place / MANIFEST).is_file():
        raise ExportError(f"{out} exists and is not an exported folder; choose another --out")
    if not force:
        raise ExportError(
            f"{out} already holds an export; add --force to replace it, or choose another --out"
        )


def _check_room(partial: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(partial).free
    if free < n_bytes:
        raise CapacityError(
            f"the export takes about {size(n_bytes)} and the disk of {partial.parent} has {size(free)} free; "
            "free some space, or choose another --out"
        )


def _publish(partial: Path, place: Path, old: Path) -> None:
    """Move a complete artifact to its place; whatever interrupts this, one of the two stays there whole."""
    if not place.exists():
        partial.rename(place)
        return
    try:
        place.rename(old)
        partial.rename(place)
    finally:
        _recover(place, old, partial)


def _recover(place: Path, old: Path, partial: Path) -> None:
    """Finish or undo a replacement that was cut short between its renames."""
    if not old.exists():
        return
    if place.exists():
        # under its own name an artifact that is half deleted could be taken for the one to go back to
        _remove(partial)
        old.rename(partial)
    else:
        old.rename(place)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
