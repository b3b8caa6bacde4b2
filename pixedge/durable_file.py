"""Files that appear whole or not at all, also when the power fails."""

import os
from pathlib import Path


def publish(beside: Path, file: Path) -> None:
    """Bring a finished file to the disk, then give it its name; what had that name is replaced."""
    with beside.open("r+b") as stream:
        os.fsync(stream.fileno())
    beside.replace(file)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
