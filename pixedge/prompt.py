"""What the engine is asked; apart from the tokenizer, which the engine does not need."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """What the model is asked: token ids with one [IMG] id per patch, and the pictures they stand for.

    images are float32 [3, H, W] with H and W multiples of the patch size, normalised as in pixedge.image, in
    the order of their ids. n_image_tokens counts the [IMG] ids alone, without [IMG_BREAK] and [IMG_END].
    """

    ids: tuple[int, ...]
    images: tuple[np.ndarray, ...]
    n_image_tokens: int
