"""A checkpoint from a hub to a folder: only the files that export reads, whole and checked."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pixedge.errors import CapacityError, CheckpointError, UsageError
from pixedge.pull_record import RECORD_FILE, PullRecord, read_pull_record
from pixedge.terminal import size

if TYPE_CHECKING:
    from pixedge.pull_transfer import Progress

_LOCK_FILE: Final = ".pixedge-pull.lock"


def looks_like_repository(text: str) -> bool:
    """Tell whether a text has the form of a repository id, owner/name.

    >>> looks_like_repository("mistralai/Pixtral-12B-2409"), looks_like_repository("./models/demo")
    (True, False)
    """
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    return (
        re.fullmatch(f"{part}/{part}", text) is not None
        and len(text) <= 96
        and not any(forbidden in text for forbidden in ("--", ".."))
        and not text.endswith(".git")
    )


def pull(
    repo_id: str,
    folder: Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: "Progress | None" = None,
) -> Path:
    """Fetch what export needs of a repository into a folder, and return the folder.

    `folder` is models/NAME below the current one unless given. Files that are there and right are kept. Where
    the hub cannot be reached, a folder that was pulled whole from the same repository and revision is
    returned as it is. `token` takes the place of the one that huggingface_hub finds.

    Raises UsageError for a malformed repo_id; CheckpointError for a repository that is missing, closed or
    without what pixedge reads, for a hub that cannot be reached, for a damaged file, and for a folder that
    holds something else; ConfigError for an architecture that pixedge does not support; CapacityError when
    the disk is too small; PullInterrupted, a KeyboardInterrupt, on Ctrl-C.
    """
    if not looks_like_repository(repo_id):
        raise UsageError(
            f"{repo_id} is not the name of a repository; give owner/name, such as mistralai/Pixtral-12B-2409"
        )
    from pixedge.hub import Repository, UnreachableError
    from pixedge.pull_choice import choose
    from pixedge.pull_transfer import Transfer

    folder = folder or Path("models") / repo_id.rpartition("/")[2]
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; choose a folder with --out")
    record = _record(folder, repo_id)
    repository = Repository(repo_id, revision, token)
    try:
        listing = repository.listing()
        wanted = choose(repository, listing, folder)
    except UnreachableError:
        if record.is_whole(folder, revision):
            return folder
        raise
    _check_disk(folder, Transfer(repository, listing.commit, folder, wanted, record, None).missing_bytes())
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(folder):
            record = _record(folder, repo_id)
            record.revision = revision
            Transfer(repository, listing.commit, folder, wanted, record, progress).run()
    finally:
        if is_new and {path.name for path in folder.iterdir()} <= {_LOCK_FILE, RECORD_FILE}:
            shutil.rmtree(folder, ignore_errors=True)
    return folder


def _record(folder: Path, repo_id: str) -> PullRecord:
    record = read_pull_record(folder) or PullRecord(repo_id)
    if record.repository != repo_id:
        raise CheckpointError(
            f"{folder} holds files of {record.repository}, not of {repo_id}; choose another folder with --out"
        )
    return record


def _check_disk(folder: Path, needed: int) -> None:
    """Refuse with both numbers when what is still missing does not fit."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CapacityError(
            f"{folder} needs {size(needed)} more, but only {size(free)} are free there; free some space, or "
            "choose another disk with --out"
        )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second pull out of the folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(f"another pull is filling {folder}; wait until it ends") from error
    except NotImplementedError:
        # A file system without locks, as some network ones are; a spoilt file is found by its hash.
        pass
    try:
        yield
    finally:
        lock.release()
