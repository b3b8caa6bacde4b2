"""Which folder was exported last, so that ``pixedge run`` finds it without being told.

Kept in last_export.json in the user's state folder: $XDG_STATE_HOME/pixedge, else ~/.local/state/pixedge; on
Windows %LOCALAPPDATA%/pixedge.
"""

import json
import os
import tempfile
from pathlib import Path


def state_folder() -> Path:
    """Give the user's state folder, whether or not it exists; RuntimeError when the user has no home."""
    name, *below = ("LOCALAPPDATA",) if os.name == "nt" else ("XDG_STATE_HOME", ".local", "state")
    base = Path(os.environ.get(name, ""))
    # The XDG specification has relative values ignored.
    if not base.is_absolute():
        base = Path.home().joinpath(*(below or ("AppData", "Local")))
    return base / "pixedge"


def record_file() -> Path:
    """Give the path of the record, whether or not it exists."""
    return state_folder() / "last_export.json"


def read_last_export() -> Path | None:
    """Give the folder of the last export, which may be gone by now; None when none is recorded."""
    try:
        record = json.loads(record_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: the user has no home
        return None
    folder = record.get("folder") if isinstance(record, dict) else None
    return Path(folder) if isinstance(folder, str) and folder else None


def write_last_export(folder: Path) -> None:
    """Record folder as the last export, in one step: a reader sees the old record or the new one.

    Raises OSError when the state folder cannot be written, and RuntimeError when the user has no home.
    """
    file = record_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"folder": str(folder.resolve())})
    handle, temporary = tempfile.mkstemp(prefix=f"{file.name}.", dir=file.parent)
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
