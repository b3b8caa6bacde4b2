"""An exported folder in Pixtral-12B's shape whose weights are holes in its files: it takes 0.2 GB of disk.

What a weight's numbers are does not matter to memory. Scales and group indices, which are checked while
loading, are there.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixedge.known_shapes import PIXTRAL_12B
from pixedge_export.safetensors_writer import TensorSpec
from tests.random_artifact import draw_tensor, random_artifact

NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}
HOLE = (".qweight", "_tokens.weight", "lm_head.weight")


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith(HOLE) or (len(shape) > 1 and not name.startswith("language_model.")):
        dtype = torch.int32 if name.endswith("qweight") else torch.float16
        dtype = torch.bfloat16 if name.endswith(HOLE[1:]) else dtype
        return torch.zeros((), dtype=dtype).expand(shape)  # no memory
    return draw_tensor(name, shape, generator)


def _write(file: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file, and step over what is a hole."""
    header, end = {}, 0
    for name, spec in specs.items():
        start, end = end, end + math.prod(spec.shape) * spec.dtype.itemsize
        header[name] = {"dtype": NAMES[spec.dtype], "shape": spec.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            if tensor.stride() and not any(tensor.stride()):
                stream.seek(tensor.nbytes, os.SEEK_CUR)
            else:
                stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        stream.truncate()


def pixtral_of_holes(folder: Path) -> Path:
    """Write the folder."""
    return random_artifact(folder, PIXTRAL_12B, _draw, _write)
