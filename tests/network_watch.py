"""A watch over what processes do on the network, by native code too; see network_watch.c."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_watch = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C compiler"
)


class NetworkWatch:
    """What was seen; ``variables`` go into the environment of a process to be watched."""

    def __init__(self, folder: Path) -> None:
        library = folder / "network_watch.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run([COMPILER, "-shared", "-fPIC", "-Wall", "-o", library, source, "-ldl"], check=True)
        self._file = folder / "network.txt"
        self.variables = {"LD_PRELOAD": str(library), "NETWORK_WATCH": str(self._file)}

    def seen(self) -> list[str]:
        """List what was seen so far: "connects to 192.0.2.1", "looks up example.com"."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [line.partition(" ")[2] for line in lines]
