"""The kinds of compiled kernels that this machine can run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pixedge.errors import UsageError
from pixedge.kernels.cpu.compiled import TORCH, VARIABLE, VARIANTS, library


@contextmanager
def chosen(variant: str) -> Iterator[None]:
    """Have the library use a variant, and put back what was there."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = variant
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def usable() -> list[str]:
    """Name the variants that this build and this CPU have; none where there was no compiler."""
    found = []
    for variant in VARIANTS:
        with chosen(variant):
            try:
                library()
            except UsageError:
                continue
            found.append(variant)
    return found


USABLE = usable()
ALL = [*VARIANTS, TORCH]
