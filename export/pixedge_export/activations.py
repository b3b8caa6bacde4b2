"""Residual streams between two layers, on disk, so that their length costs no memory and survives a crash.

A stream is one file of raw float32 values, all samples in a row. While a layer is at work the streams in
front of it stay as they are and those behind it are written beside them; so whatever interrupts the work, it
can begin again in front of the layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from pixedge.durable_file import publish
from pixedge_export.layers import STREAMS, Streams

_ITEM = 4  # bytes of a float32


class Activations(Sequence[Tensor]):
    """The samples of one stream, float32 [tokens, dim] each; each is read when it is asked for."""

    def __init__(self, file: Path, lengths: Sequence[int], dim: int) -> None:
        """Name a file that ``save`` wrote; lengths are the samples' tokens."""
        self.file, self.lengths, self.dim = file, tuple(lengths), dim
        self._starts = (0, *accumulate(self.lengths))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self._starts[-1] * self.dim * _ITEM

    def save(self, samples: Iterable[Tensor]) -> None:
        """Write the samples, each of which may be freed once the next is asked for.

        Raises OSError when the file cannot be written, and leaves nothing then.
        """
        beside = self.file.with_name(f"{self.file.name}.new")
        try:
            with beside.open("wb") as stream:
                for length, x in zip(self.lengths, samples, strict=True):
                    assert tuple(x.shape) == (length, self.dim), f"{tuple(x.shape)}, not {(length, self.dim)}"
                    stream.write(x.detach().float().cpu().contiguous().numpy().data)
            publish(beside, self.file)
        finally:
            beside.unlink(missing_ok=True)

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Read one sample, or a list of them."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        count, offset = self.lengths[at] * self.dim, self._starts[at] * self.dim * _ITEM
        values = np.fromfile(self.file, np.float32, count, offset=offset)
        return torch.from_numpy(values).view(self.lengths[at], self.dim)


@dataclass(frozen=True)
class StreamLengths:
    """The tokens of every sample, and the width of the model."""

    calibration: Sequence[int]
    held_out: Sequence[int]
    dim: int

    @property
    def nbytes(self) -> int:
        """The most bytes that the streams take on disk: all, in front of a layer and behind it.

        In between there is one stream more, of the calibration samples.
        """
        return (5 * sum(self.calibration) + 2 * 3 * sum(self.held_out)) * self.dim * _ITEM


class StoredStreams(Streams):
    """Streams that live in a folder; ``files`` says which file each of them is in at the moment."""

    def __init__(self, folder: Path, files: Mapping[str, str], lengths: StreamLengths) -> None:
        """Open the streams in ``files``, a file's name by stream."""
        self.folder, self.lengths, self.files = folder, lengths, dict(files)
        for name, file in files.items():
            setattr(self, name, self._open(name, file))

    def _open(self, name: str, file: str) -> Activations:
        held_out = name in ("dense", "rtn", "quantized")
        tokens = self.lengths.held_out if held_out else self.lengths.calibration
        return Activations(self.folder / file, tokens, self.lengths.dim)

    def are_whole(self) -> bool:
        """Tell whether every stream's file is there and as long as it must be."""
        streams = [getattr(self, name, None) for name in STREAMS]
        return all(
            isinstance(stream, Activations)
            and stream.file.is_file()
            and stream.file.stat().st_size == stream.nbytes
            for stream in streams
        )

    def move(self, name: str, samples: Iterable[Tensor]) -> None:
        """Let a stream go on as ``samples``; the file that it was in stays until ``forget_past``."""
        file = next(f for f in (f"{name}.{letter}" for letter in "ab") if f != self.files.get(name))
        stream = self._open(name, file)
        stream.save(samples)
        self.files[name] = file
        setattr(self, name, stream)

    def share(self, name: str, other: str) -> None:
        """Let a stream be the same as another one, file and all."""
        self.files[name] = self.files[other]
        setattr(self, name, getattr(self, other))

    def drop(self, name: str) -> None:
        """Let a stream be no more; its file stays until ``forget_past``."""
        del self.files[name]
        delattr(self, name)

    def forget_past(self) -> None:
        """Remove the files that no stream is in."""
        for file in self.folder.glob("*.[ab]"):
            if file.name not in self.files.values():
                file.unlink()
