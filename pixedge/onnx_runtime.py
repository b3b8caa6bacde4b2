"""ONNX Runtime, imported here alone: without telemetry, and without words of its own.

Its wheels send telemetry since version 1.29. `pixedge/__init__.py` sets the variable that turns it off, which
must happen before the first import. Where a program imported ONNX Runtime before pixedge, and in builds for
Windows' own event log, which do not read the variable, its API turns off what it can.

    >>> from pixedge.onnx_runtime import onnxruntime
"""

import contextlib
import functools
import io
import os
import sys
from collections.abc import Iterator

__all__ = ["onnxruntime", "preload_cuda", "state"]

# How ONNX Runtime reads ORT_DISABLE_TELEMETRY; with any other value a user keeps telemetry on.
_OFF = ("1", "true", "yes", "y", "on")
_FATAL = 4  # ONNX Runtime's severities: errors come as exceptions


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what Python and native code print on standard output and standard error meanwhile.

    This holds for all threads of the process, so it is kept to two short moments of the first load.
    """
    saved = []
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):  # closed
                    stream.flush()
        for number in (1, 2):
            with contextlib.suppress(OSError):  # closed
                saved.append((number, os.dup(number)))
                os.dup2(null, number)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)


with _silence():  # it warns of cards that it cannot read about, in WSL and in containers for example
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

if os.environ.get("ORT_DISABLE_TELEMETRY", "").strip().lower() in _OFF:
    onnxruntime.disable_telemetry_events()
# What does not belong to a session is logged apart from the sessions' options.
onnxruntime.set_default_logger_severity(_FATAL)


@functools.cache
def preload_cuda() -> None:
    """Load the CUDA libraries that torch brought, where no others are on the path; once a process.

    In some installations ONNX Runtime prints about it on standard output. What is missing shows when a
    library is loaded by name.
    """
    with _silence():
        onnxruntime.preload_dlls()
