"""From chosen files to a filled folder: go on with what is there, fetch, hash, and only then give names."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from pixedge.errors import CapacityError, CheckpointError
from pixedge.hub import RemoteFile, Repository
from pixedge.pull_choice import Wanted
from pixedge.pull_record import FinishedFile, PullRecord
from pixedge.terminal import size

_HASH_CHUNK: Final = 1 << 22


class Progress(Protocol):
    """Takes a step: `done` of `total` bytes within a phase, "download" or "check"."""

    def __call__(self, phase: str, done: int, total: int, name: str) -> None:
        """Show the step; `name` is the file at hand."""


class PullInterrupted(KeyboardInterrupt):
    """Ctrl-C during a pull; its text says what is kept."""


class Transfer:
    """Fills one folder: bytes are appended to NAME.HASH.incomplete, and a right file gets its name."""

    def __init__(
        self,
        repository: Repository,
        commit: str,
        folder: Path,
        wanted: Wanted,
        record: PullRecord,
        progress: Progress | None,
    ) -> None:
        """Only look at what the folder has; `record` is brought up to date as files are finished."""
        self._repository, self._commit, self._folder = repository, commit, folder
        self._wanted, self._record = wanted, record
        self._progress: Progress = progress or (lambda phase, done, total, name: None)
        self._total = sum(file.size for file in wanted.files)
        self._arrived = sum(self._bytes_of(file) for file in wanted.files)

    def missing_bytes(self) -> int:
        """Give the disk space that run needs, less what it frees."""
        return self._total - self._arrived - sum(path.stat().st_size for path in self._outdated())

    def run(self) -> None:
        """Fetch what is missing.

        Raises CheckpointError for a file that arrived damaged and for one in the folder that differs and is
        not of an earlier pull, CapacityError when the disk fills up, PullInterrupted on Ctrl-C, and what
        Repository.download raises. What has arrived stays in any case, except damaged files.
        """
        try:
            missing = self._sort_out()
            self._fetch(missing)
            self._finish(missing)
        except KeyboardInterrupt:
            raise PullInterrupted(
                f"stopped; {size(self._arrived)} of {size(self._total)} are in {self._folder}, and the same "
                "command goes on from there"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CapacityError(
                f"the disk filled up at {size(self._arrived)} of {size(self._total)} in {self._folder}; free "
                "some space, and the same command goes on from there"
            ) from error

    def _part(self, file: RemoteFile) -> Path:
        return self._folder / f"{file.name}.{file.oid[:12]}.incomplete"

    def _is_finished(self, file: RemoteFile) -> bool:
        finished = self._record.files.get(file.name)
        return (
            finished is not None
            and finished.oid == file.oid
            and finished.is_untouched(self._folder / file.name)
        )

    def _bytes_of(self, file: RemoteFile) -> int:
        """Give the bytes of a file that need not be fetched, as far as that shows without reading them."""
        path, part = self._folder / file.name, self._part(file)
        if path not in self._outdated() and path.is_file() and path.stat().st_size == file.size:
            return file.size
        return min(part.stat().st_size, file.size) if part.is_file() else 0

    def _outdated(self) -> list[Path]:
        """List what earlier pulls of other contents have left: finished files and parts."""
        oids = {file.name: file.oid for file in self._wanted.files}
        finished = [
            self._folder / name
            for name, finished in self._record.files.items()
            if finished.oid != oids.get(name) and finished.is_untouched(self._folder / name)
        ]
        parts = [
            part
            for name in oids.keys() | self._record.files.keys()
            for part in self._folder.glob(f"{name}.*.incomplete")
        ]
        return finished + [part for part in parts if part not in set(map(self._part, self._wanted.files))]

    def _sort_out(self) -> list[RemoteFile]:
        """Remove what is outdated and give the files that are not there; what nobody recorded is hashed."""
        outdated, missing = self._outdated(), []
        finished: dict[str, FinishedFile] = {}
        for file in self._wanted.files:
            path = self._folder / file.name
            if self._is_finished(file):
                finished[file.name] = self._record.files[file.name]
            elif path.exists() and path not in outdated:
                if path.stat().st_size != file.size or self._digest(path, file, 0, file.size) != file.oid:
                    raise CheckpointError(
                        f"{path} differs from the {file.name} of {self._repository.repo_id}; move it away, "
                        "or choose another folder with --out"
                    )
                finished[file.name] = FinishedFile.of(path, file.oid)
            else:
                missing.append(file)
        for path in outdated:
            path.unlink()
        self._record.files = finished
        self._record.complete = not missing
        self._record.write(self._folder)
        return missing

    def _fetch(self, missing: list[RemoteFile]) -> None:
        self._arrived = sum(self._bytes_of(file) for file in self._wanted.files)
        for file in missing:
            part = self._part(file)
            have = self._bytes_of(file)
            before = self._arrived - have

            def step(done: int, before: int = before, name: str = file.name) -> None:
                self._arrived = before + done
                self._progress("download", self._arrived, self._total, name)

            step(have)
            if file.name in self._wanted.contents:
                part.write_bytes(self._wanted.contents[file.name])
            else:
                self._repository.download(file, self._commit, part, step)
            step(file.size)

    def _finish(self, missing: list[RemoteFile]) -> None:
        done, total = 0, sum(file.size for file in missing)
        damaged = []
        for file in missing:
            part = self._part(file)
            if self._digest(part, file, done, total) != file.oid:
                part.unlink()
                self._arrived -= file.size
                damaged.append(file.name)
            elif not damaged:
                # The bytes must be on the disk before the name is, or a power cut leaves the name alone.
                with part.open("rb+") as stream:
                    os.fsync(stream.fileno())
                path = self._folder / file.name
                os.replace(part, path)
                self._record.files[file.name] = FinishedFile.of(path, file.oid)
                self._record.write(self._folder)
            done += file.size
        if damaged:
            raise CheckpointError(
                f"{', '.join(damaged)} arrived damaged: the hash is not the one that "
                f"{self._repository.repo_id} lists; it is removed, and the same command fetches it again"
            )
        self._record.complete = True
        self._record.write(self._folder)

    def _digest(self, path: Path, file: RemoteFile, before: int, total: int) -> str:
        digest = file.hasher()
        for chunk in _chunks(path):
            digest.update(chunk)
            before += len(chunk)
            self._progress("check", before, total, file.name)
        return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            yield chunk
