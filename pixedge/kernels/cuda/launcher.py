"""What Triton builds before the first launch: a small C file, for which it needs a compiler and Python.h.

This module imports neither torch nor triton before ``prepare`` is called.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from pixedge.errors import PixedgeError


def compiler() -> str | None:
    """Return the C compiler that Triton uses, as triton/runtime/build.py chooses it; None without one."""
    named = os.environ.get("CC")
    if named is not None:
        return shutil.which(named)
    return shutil.which("gcc") or shutil.which("clang")


def header() -> Path:
    """Return the path where Triton looks for Python.h."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder below /usr/local, where Python's headers are not.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"


def missing() -> list[str]:
    """Name what Triton's build lacks; nothing on Windows, where Triton brings both."""
    if sys.platform == "win32":
        return []
    return [
        *([] if compiler() else ["a C compiler"]),
        *([] if header().is_file() else [f"Python.h ({header()})"]),
    ]


def remedy() -> str:
    """Say what to install, for each family of Linux systems."""
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        f"install gcc and Python's headers: sudo apt install build-essential python{version}-dev (Debian, "
        "Ubuntu, WSL), sudo dnf install gcc python3-devel (Fedora) or sudo pacman -S gcc python (Arch)"
    )


def prepare() -> None:
    """Build or load what Triton launches kernels by; nothing is built where Triton's cache has it.

    Raises PixedgeError that says what to install.
    """
    from triton import knobs
    from triton.runtime import driver

    lacking, before = missing(), knobs.build.impl

    def refuse(*_: object) -> None:
        raise PixedgeError(
            f"the GPU kernels need {' and '.join(lacking)} at their first launch, which Triton builds a "
            f"small C file for; {remedy()}"
        )

    if lacking and before is None:
        knobs.build.impl = refuse
    try:
        driver.active.get_current_target()
    except subprocess.CalledProcessError as error:
        raise PixedgeError(
            f"the GPU kernels cannot be launched: {compiler()} failed to build Triton's small C file (exit "
            f"code {error.returncode}, its own words are above); {remedy()}"
        ) from error
    except (AssertionError, FileNotFoundError) as error:  # how Triton says that it finds no libcuda.so.1
        reason = next(iter(str(error).splitlines()), "")
        raise PixedgeError(
            f"the GPU kernels cannot be launched: Triton did not find the driver's libcuda.so.1 ({reason}); "
            "run sudo ldconfig, or set TRITON_LIBCUDA_PATH to the folder that has it"
        ) from error
    finally:
        knobs.build.impl = before
