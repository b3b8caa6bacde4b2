"""Pictures to measure with: drawn from a seed, as hard to decode as a photograph."""

import io

import numpy as np
from PIL import Image


def drawn_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """Return a JPEG of soft shapes under some noise, at about a photograph's bytes a pixel."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(2, height // 48), max(2, width // 48), 3), dtype=np.uint8)
    soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.normal(0, 6, (height, width, 3))
    values = np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=88)
    return stream.getvalue()
