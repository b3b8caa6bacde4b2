"""Writing a safetensors file one tensor at a time.

Format: https://huggingface.co/docs/safetensors — see safetensors_header. The library's own writer wants all
tensors at once, gives its files to their owner alone and hides the system's reason when a disk is full.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pixedge.durable_file import publish

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int32: "I32"}
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of a tensor before its values are known."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that are in memory, those with the widest elements first so that all are aligned."""
    names = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    specs = {name: TensorSpec(tensors[name].dtype, tuple(tensors[name].shape)) for name in names}
    stream_tensors(file, specs, (tensors[name] for name in names))


def stream_tensors(file: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[Tensor]) -> None:
    """Write tensors in the order of ``specs``, each of which may be freed once the next is asked for.

    A file of that name is replaced at the end, since the tensors may be mapped from it. Raises OSError when
    the file cannot be written, and leaves nothing then.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + math.prod(spec.shape) * spec.dtype.itemsize
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    beside = file.with_name(f"{file.name}.new")
    try:
        with beside.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for (name, spec), tensor in zip(specs.items(), tensors, strict=True):
                found = TensorSpec(tensor.dtype, tuple(tensor.shape))
                assert found == spec, f"{name} is {found}, announced as {spec}"
                stream.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        publish(beside, file)
    finally:
        beside.unlink(missing_ok=True)
