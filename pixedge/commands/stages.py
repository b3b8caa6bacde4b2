"""What a person sees between a question and the first token of its answer."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pixedge.terminal import progress

if TYPE_CHECKING:
    from pixedge.stage import OnStage, Stage


@contextlib.contextmanager
def show_stages(quiet: bool) -> "Iterator[OnStage]":
    """Show each stage with its size and seconds on a terminal, until the block is left; nothing in a file."""
    with progress(quiet=quiet or not sys.stderr.isatty()) as report:

        def show(stage: "Stage") -> None:
            if stage.size is None:
                report("prompt", stage.done, stage.total, f"{stage.total:,} tokens")
            else:
                width, height = stage.size
                which = f"picture {stage.done + 1} of {stage.total} ({width} x {height})"
                report("encoding", stage.done, stage.total, which)

        report("preparing", 0, 0)
        yield show
