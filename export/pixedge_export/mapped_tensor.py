"""A tensor mapped from its place in a safetensors file.

The library maps whole files, writable and private, and Linux then wants memory for all of it to be at hand: a
checkpoint of 25 GB in one file could not be opened with 24 GB. Here only the tensor's own bytes are mapped.
"""

import numpy as np
import torch
from torch import Tensor

from pixedge_export.safetensors_header import StoredTensor

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I32": torch.int32,
    "I64": torch.int64,
}


def map_tensor(stored: StoredTensor) -> Tensor:
    """Return the tensor; its bytes are read as they are used, and the pages last as long as it lives.

    Raises OSError or ValueError when the file is gone or has become too short.
    """
    dtype = DTYPES[stored.dtype]
    if stored.nbytes == 0:  # nothing can be mapped
        return torch.empty(stored.shape, dtype=dtype)
    # copy-on-write: a change in memory stays there, and torch wants an array that may be changed
    raw = torch.from_numpy(np.memmap(stored.file, np.uint8, "c", offset=stored.start, shape=(stored.nbytes,)))
    if raw.data_ptr() % dtype.itemsize:  # the header's length is up to whoever wrote the file
        raw = raw.clone()
    return raw.view(dtype).view(stored.shape)
