"""Starts a module of pixedge as a process of its own, which imports what this process itself would."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pixedge.errors import CapacityError


def start_module(module: str, *arguments: str, **options: Any) -> "subprocess.Popen[Any]":
    """Run ``python -m module arguments`` with this process's search path, never the working directory's.

    options: those of subprocess.Popen; env holds what is added to the environment. Raises CapacityError where
    the system starts no more processes.
    """
    # -P, or a numpy.py beside somebody's pictures would be run. All of the path, in its order: with pixedge's
    # folder alone in front, a package installed beside it could stand before the standard library.
    ours = str(Path(__file__).parents[1])
    places = [place for place in sys.path if os.path.isabs(place)]
    path = os.pathsep.join(places if ours in places else [*places, ours])
    environment = os.environ | options.pop("env", {}) | {"PYTHONPATH": path}
    try:
        return subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env=environment, **options)
    except OSError as error:
        raise CapacityError(
            f"another process cannot be started ({error.strerror}); end other programs, or raise the limits "
            "on processes, files and memory"
        ) from error
