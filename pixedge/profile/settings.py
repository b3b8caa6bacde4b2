"""What a profile measures."""

from collections.abc import Sequence
from dataclasses import dataclass

from pixedge.config import ModelConfig
from pixedge.scratch import picture_tokens

TOKENS = 128
"""Of an answer in the rows that llama-bench has too."""
FEW_TOKENS = 32
"""Of an answer in all other rows of decoding."""


DEFAULT_CACHE = 8192
"""Tokens that the cache holds where no row needs more."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    prompts: tokens of each prompt. depths: tokens before an answer. batches: answers at a time. sides: of
    drawn square pictures, in pixels. None everywhere is what suits the model. pictures: files of pictures in
    place of drawn ones. repeats: runs of each row at most, ``enough`` seconds end them earlier. requests,
    concurrency: of the serving figures; no requests leave them out.
    """

    prompts: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    batches: tuple[int, ...] | None = None
    sides: tuple[int, ...] | None = None
    pictures: tuple[bytes, ...] = ()
    max_image_size: int | None = None
    repeats: int = 5
    enough: float = 5.0
    requests: int = 8
    concurrency: int = 4

    def cache_tokens(self, config: ModelConfig, sizes: Sequence[tuple[int, int]]) -> int:
        """Return how many tokens' keys and values the cache must hold for all of this, in one go.

        sizes: width and height of the pictures that are given. More than the model's context helps nobody.
        """
        context = config.decoder.context
        asked = sum(picture_tokens(config, *size) for size in sizes) or picture_tokens(
            config, *[max(self.sides_of(config))] * 2
        )
        longest = max((*self.prompts_of(context), *self.depths_of(context), 1), default=1)
        at_a_time = self.concurrency if self.requests else 1
        needed = (
            max(longest, max((*self.batches_of(), 1)) * FEW_TOKENS) + 2 * TOKENS,
            asked + 8 * TOKENS,
            at_a_time * (sum(picture_tokens(config, *size) for size in sizes) + 2 * TOKENS),
        )
        return min(context, max(DEFAULT_CACHE, *needed))

    def prompts_of(self, room: int) -> tuple[int, ...]:
        """Return the prompts' lengths for a model that has room for so many tokens."""
        return self.prompts or tuple(each for each in (128, 512, 2048) if each < room)

    def depths_of(self, room: int) -> tuple[int, ...]:
        """Return the depths: none, llama-bench's 4096 or what there is room for, and one between."""
        if self.depths is not None:
            return self.depths
        deep = 4096
        while deep + TOKENS >= room and deep > 1:
            deep //= 2
        return (0, deep // 4, deep)

    def batches_of(self) -> tuple[int, ...]:
        """Return the numbers of answers at a time, 1 being measured anyway."""
        return self.batches or (2, 4, 8)

    def sides_of(self, config: ModelConfig) -> tuple[int, ...]:
        """Return the pictures' sides: half of the encoder's largest, and that."""
        largest = config.vision.image_size
        return self.sides or (largest // 2, largest)
