"""The header of a safetensors file, checked against the file's length without reading any data.

Format: https://huggingface.co/docs/safetensors — 8 bytes with the header's length (little endian), the header
(JSON: name -> dtype, shape, data_offsets), then the data without gaps.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixedge.errors import CheckpointError

# The format's own limit, which keeps a corrupt length from becoming a huge read.
_MAX_HEADER_BYTES = 100_000_000
# Bytes per element of the types whose length is checked; any other type is left to the reader to refuse.
_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file's header describes it; dtype in safetensors' spelling, such as BF16.

    start: the place of its first byte, from the beginning of the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(file: Path) -> list[StoredTensor]:
    """List the tensors of a safetensors file; CheckpointError when it is truncated or corrupt."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            text = stream.read(length) if 0 < length <= min(size - 8, _MAX_HEADER_BYTES) else b""
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if size < 8 or 8 + length > size:
        raise CheckpointError(
            f"{file} is truncated: it has {size} bytes, but its header alone needs {8 + length}; "
            "fetch it again"
        )
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        spans = [_parse(file, 8 + length, name, entry) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not a safetensors file, or its header is corrupt; fetch it again"
        ) from error
    end = 0
    for tensor, start, stop in sorted(spans, key=lambda span: span[1:]):
        right = stop - start == math.prod(tensor.shape) * _ITEM_BYTES.get(tensor.dtype, 0)
        if start != end or stop < start or (tensor.dtype in _ITEM_BYTES and not right):
            raise CheckpointError(
                f"{file}: the header gives {tensor.name} ({tensor.dtype} {list(tensor.shape)}) the bytes "
                f"{start} to {stop} of the data, which cannot be right; fetch the file again"
            )
        end = stop
    if 8 + length + end != size:
        what = "truncated" if 8 + length + end > size else "too long"
        raise CheckpointError(
            f"{file} is {what}: it has {size} bytes, but its header describes {8 + length + end}; "
            "fetch it again"
        )
    return [tensor for tensor, _, _ in spans]


def _parse(file: Path, data: int, name: str, entry: dict[str, Any]) -> tuple[StoredTensor, int, int]:
    """Give a header entry's tensor and the first and last byte of its data."""
    start, stop = map(_whole, entry["data_offsets"])
    shape = tuple(map(_whole, entry["shape"]))
    return StoredTensor(file, name, str(entry["dtype"]), shape, data + start, stop - start), start, stop


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value
