"""The numbers that layouts are made of; imports nothing, so that a plan can be made on any machine."""

BLOCK_OUT = 16
BLOCK_IN = 128
"""Outputs and inputs of a block of a 4-bit weight, 1 KB in one piece."""
WORDS = BLOCK_IN // 8
PADDED_OUT = 128
"""Outputs are filled up to a multiple of this, so that no load of weights needs a mask."""
MAX_ROWS = 16
"""The most rows of x that a product of few rows takes."""
BATCHES = (1, 2, 4, 8, 16)
"""Batch sizes of which there is a graph each."""
PAGE = 16
"""Tokens that a page of the cache holds."""
LOGITS = 4096
"""Logits that a program compares at a time."""
MAX_PARTS = 64
"""The most parts of a context that run side by side."""


def batches(requests: int) -> tuple[int, ...]:
    """Return the batch sizes that serve up to ``requests`` sequences at a time."""
    return tuple(size for size in BATCHES if size < 2 * requests)


def power_of_2(n: int) -> int:
    """Return the smallest power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()
