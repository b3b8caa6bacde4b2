"""Deep samples to 8 bits."""

import numpy as np

# So many samples are scaled at a time: as float64 they take 32 MB.
_SAMPLES = 1 << 22


class NotNumbersError(Exception):
    """Samples that are NaN or infinite."""


def to_8_bits(values: np.ndarray, inverted: bool = False, most: int = 65535) -> np.ndarray:
    """Scale samples to uint8, same shape.

    Unsigned samples of up to 16 bits keep their full range: ``most``, the greatest that their bits hold,
    becomes 255. Other integers are taken as 8-bit or 16-bit values where they fit, and floats between 0 and 1
    as shares of white; anything else is spread between its own least and greatest value. inverted: 0 is
    white. Raises NotNumbersError for NaN and infinity.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        low, high = 0.0, float(most)
    else:
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise NotNumbersError
        for white in (1.0,) if values.dtype.kind == "f" else (255.0, 65535.0):
            if low >= 0 and high <= white:
                low, high = 0.0, white
                break
    scale = min(255 / ((high - low) or 1.0), 1e300)  # finite, where all samples are nearly one
    result = np.empty(values.shape, np.uint8)
    rows = max(1, _SAMPLES // max(1, values[0].size))
    for top in range(0, len(values), rows):
        part = values[top : top + rows].astype(np.float64)
        part -= low
        part *= scale
        np.rint(part, out=part)
        result[top : top + rows] = part
    return np.subtract(255, result, out=result) if inverted else result
