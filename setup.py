"""Compiles pixedge's CPU kernels; everything else about the package stands in pyproject.toml.

The library is plain C that is loaded through ctypes. It is optional: where there is no compiler, or not a
Unix one, the package installs without it and torch serves, more slowly.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

# The kinds of CPU are chosen among while the program runs, so no -march here.
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]


def library(name: str, *folders: str) -> Extension:
    """Describe a library of all C files in some folders."""
    return Extension(
        name,
        sources=[str(file) for folder in folders for file in sorted(Path(folder).glob("*.c"))],
        depends=[str(file) for folder in folders for file in sorted(Path(folder).glob("*.h"))],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
        libraries=["m"],
        optional=True,
    )


KERNELS = library("pixedge.kernels.cpu._cpu", "pixedge/kernels/cpu", "pixedge/kernels/vision")

setup(ext_modules=[] if sys.platform == "win32" else [KERNELS])
