"""Compiles pixedge's CPU kernels; everything else about the package stands in pyproject.toml.

The library is plain C that is loaded through ctypes. It is optional: where there is no compiler, or not a
Unix one, the package installs without it and torch serves, more slowly.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

# The kinds of CPU are chosen among while the program runs, so no -march here.
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]


def library(name: str, folder: str) -> Extension:
    """Describe a library of all C files in a folder."""
    return Extension(
        name,
        sources=sorted(map(str, Path(folder).glob("*.c"))),
        depends=sorted(map(str, Path(folder).glob("*.h"))),
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
        libraries=["m"],
        optional=True,
    )


libraries = [library("pixedge.kernels.cpu._cpu", "pixedge/kernels/cpu")]
setup(ext_modules=[] if sys.platform == "win32" else libraries)
