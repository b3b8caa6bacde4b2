"""What ``pixedge pull`` has finished in a folder: kept beside the files, to spare hashing them again."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

RECORD_FILE = ".pixedge-pull.json"


@dataclass(frozen=True)
class FinishedFile:
    """A file that had the listing's hash when it got its name; size in bytes, time of change in ns."""

    oid: str
    size: int
    changed: int

    @classmethod
    def of(cls, file: Path, oid: str) -> "FinishedFile":
        """Describe a file as it lies there now."""
        state = file.stat()
        return cls(oid, state.st_size, state.st_mtime_ns)

    def is_untouched(self, file: Path) -> bool:
        """Tell whether the file is there and has neither been replaced nor written to."""
        return file.is_file() and self == FinishedFile.of(file, self.oid)


@dataclass
class PullRecord:
    """The repository that a folder is filled from, and the files that are finished.

    `complete` says that nothing was missing of `revision` (as it was asked for) when the pull ended.
    """

    repository: str
    revision: str | None = None
    complete: bool = False
    files: dict[str, FinishedFile] = field(default_factory=dict)

    def is_whole(self, folder: Path, revision: str | None) -> bool:
        """Tell whether the folder holds all of a revision, untouched since it was pulled."""
        return (
            self.complete
            and self.revision == revision
            and all(finished.is_untouched(folder / name) for name, finished in self.files.items())
        )

    def write(self, folder: Path) -> None:
        """Write the record in one step."""
        data = {
            "repository": self.repository,
            "revision": self.revision,
            "complete": self.complete,
            "files": {name: vars(finished) for name, finished in self.files.items()},
        }
        part = folder / f"{RECORD_FILE}.part"
        part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        os.replace(part, folder / RECORD_FILE)


def read_pull_record(folder: Path) -> PullRecord | None:
    """Give the record of a folder; None where there is none or it cannot be understood.

    A lost record costs no more than hashing what is there.
    """
    try:
        data = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        files = {
            str(name): FinishedFile(str(entry["oid"]), int(entry["size"]), int(entry["changed"]))
            for name, entry in data["files"].items()
            if Path(name).name == name
        }
        revision = data["revision"]
        return PullRecord(
            str(data["repository"]),
            None if revision is None else str(revision),
            data["complete"] is True,
            files,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
