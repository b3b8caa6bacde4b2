"""Where an export goes: written beside its destination and moved there once it is complete.

.NAME.partial   what is being written, below "artifact", and what is needed to go on after a failure: it stays
                where there is a journal
.NAME.old       the artifact that is being replaced, for the moment between two renames
NAME            a complete artifact, or nothing
"""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pixedge.artifact import MANIFEST
from pixedge.errors import CapacityError, ExportError
from pixedge.terminal import size
from pixedge_export.journal import read_journal

_ARTIFACT = "artifact"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def destination(
    out: Path, n_bytes: int, *, force: bool, source: Path, calibration: Path | None = None
) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``out`` when the block ends without an error.

    It is empty, or holds what an export that did not end has left; the journal is in the folder above it.
    n_bytes: what the block will write, about. force: an artifact at ``out`` is replaced, at the end. source
    and calibration: folders that the block reads. Raises ExportError for a destination that cannot be used or
    that another export is writing to, CapacityError when the disk is or becomes too full.
    """
    place = out.resolve()  # a link to a folder is followed, so that the renames stay on one disk
    partial, old = unfinished(out), place.with_name(f".{place.name}.old")
    if partial.is_dir():
        with _alone(partial, out):  # or it is another's, and nothing may be touched
            pass
    _recover(place, old, partial)
    _check(out, place, force, source, calibration)
    try:
        try:
            if not _can_go_on(partial):
                _remove(partial)
            (partial / _ARTIFACT).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExportError(
                f"{partial} cannot be made ({error.strerror}); choose another folder, or check the parent"
            ) from error
        with _alone(partial, out):
            try:
                _check_room(partial, n_bytes)
                yield partial / _ARTIFACT
                _publish(partial, place, old)
            except BaseException:
                if not _can_go_on(partial):
                    _remove(partial)
                raise
            _remove(partial)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise CapacityError(
                f"the disk of {place.parent} is full; free some space, or choose another folder"
            ) from error
        raise


def unfinished(out: Path) -> Path:
    """Give the folder that an export to ``out`` is written into."""
    place = out.resolve()
    return place.with_name(f".{place.name}.partial")


def _can_go_on(partial: Path) -> bool:
    return read_journal(partial) is not None


@contextlib.contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    """Hold the folder for this process, where the system can; ExportError while another one has it."""
    if sys.platform == "win32":  # there a folder with open files cannot be renamed or removed
        yield
        return
    import fcntl

    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(
                f"another export is writing to {out}; wait until it ends, or choose another folder"
            ) from error
        yield
    finally:
        os.close(handle)


def _check(out: Path, place: Path, force: bool, source: Path, calibration: Path | None) -> None:
    """Refuse to write into or over what is read, and over anything but an artifact that may be replaced."""
    if place.is_relative_to(source.resolve()):
        raise ExportError(f"{out} is the checkpoint's folder {source} or inside it; choose another folder")
    for folder in (source, calibration):
        if folder is not None and folder.resolve().is_relative_to(place):
            raise ExportError(f"{out} would replace {folder}, which is read; choose another folder")
    if not place.exists():
        return
    if os.path.ismount(place):
        raise ExportError(f"{out} is the root of a disk; choose a folder inside it, such as {out / 'model'}")
    if place.is_dir() and not any(place.iterdir()):
        return
    if not (place / MANIFEST).is_file():
        raise ExportError(f"{out} exists and is not an exported folder; choose another folder")
    if not force:
        raise ExportError(
            f"{out} already holds an export; add --force to replace it, or choose another folder"
        )


def _check_room(partial: Path, n_bytes: int) -> None:
    there = sum(file.stat().st_size for file in (partial / _ARTIFACT).iterdir())
    free = shutil.disk_usage(partial).free + there  # what is there already is part of what is written
    if free < n_bytes:
        raise CapacityError(
            f"the export takes about {size(n_bytes)} and the disk of {partial.parent} has {size(free)} free; "
            "free some space, or choose another folder"
        )


def _publish(partial: Path, place: Path, old: Path) -> None:
    """Move a complete artifact to its place; whatever interrupts this, one of the two stays there whole."""
    artifact = partial / _ARTIFACT
    if not place.exists():
        artifact.rename(place)
        return
    try:
        place.rename(old)
        artifact.rename(place)
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


def empty(folder: Path) -> None:
    """Remove all that is in a folder."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
