"""Ask questions about pictures with Pixtral on one consumer GPU, or on a CPU alone.

With ``folder``, which ``pixedge export`` made, and the ``pathlib.Path`` of a ``picture``:

    >>> import pixedge
    >>> model = pixedge.load(folder)
    >>> question = {"type": "text", "text": "What is in this picture?"}
    >>> messages = [{"role": "user", "content": [{"type": "image", "image": picture}, question]}]
    >>> answer = model.generate(messages, pixedge.SamplingParams(max_tokens=100))
    >>> answer.finish_reason
    'stop'
    >>> "".join(model.stream(messages)) == answer.text
    True

The names below are imported when they are first used, so that ``import pixedge`` costs nothing.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixedge.loading import load
    from pixedge.sampling import SamplingParams

    __version__: str

# Nothing leaves the machine: both libraries read this at their first import, and child processes inherit it.
# Whoever has set a variable keeps what it says.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")

__all__ = ["SamplingParams", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    value: Any
    if name == "load":
        from pixedge.loading import load as value
    elif name == "SamplingParams":
        from pixedge.sampling import SamplingParams as value
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Show the public names before they are imported too."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pixedge")
    except PackageNotFoundError:  # a source tree on the path that was never installed
        return "0+unknown"
