"""What is said when memory runs out, whoever noticed: the one place where such errors become sentences."""

import contextlib
import sys
from collections.abc import Iterator

from pixedge.errors import MemoryFullError

# What an allocation that failed says in torch on the CPU, and in ONNX Runtime: their exceptions have no type
# of their own for it.
_WORDS = ("DefaultCPUAllocator: can't allocate memory", "Failed to allocate memory")
_LESS = (
    "use a smaller --context, --max-image-size or --vram-limit, fewer pictures or --device cpu, or close "
    "other programs"
)


def out_of_memory(error: BaseException) -> MemoryFullError | None:
    """Return the sentence for an allocation that failed; None for an error of any other kind."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return MemoryFullError(f"the GPU's memory is full; {_LESS}")
    if isinstance(error, MemoryError) or any(words in str(error) for words in _WORDS):
        return MemoryFullError(f"the memory is full; {_LESS}")
    return None


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn an allocation that fails inside into its sentence; other errors pass as they are."""
    try:
        yield
    except Exception as error:
        full = out_of_memory(error)
        if full is None:
            raise
        raise full from error
