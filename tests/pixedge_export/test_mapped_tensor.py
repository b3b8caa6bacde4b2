"""Tensors mapped by their place in a file, against the library that maps the whole of it."""

import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixedge_export.mapped_tensor import DTYPES, map_tensor
from pixedge_export.safetensors_header import read_header

TENSORS = {
    "a": torch.randn(7, 5).to(torch.bfloat16),
    "b": torch.randn(3).half(),
    "c": torch.randn(2, 3, 4),
    "d": torch.arange(9, dtype=torch.int32),
    "e": torch.tensor(5, dtype=torch.int64),
    "f": torch.empty(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_every_tensor_is_what_the_library_reads(file: Path) -> None:
    expected = load_file(file)
    found = {stored.name: map_tensor(stored) for stored in read_header(file)}
    assert {tensor.dtype for tensor in expected.values()} == set(DTYPES.values())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_change_stays_in_memory(file: Path) -> None:
    before = file.read_bytes()
    for stored in read_header(file):
        map_tensor(stored).zero_()
    assert file.read_bytes() == before


def test_a_header_of_odd_length(tmp_path: Path) -> None:
    """The format does not ask for padding, so a float may begin at an odd byte."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    header += b" " * (1 - len(header) % 2)
    data = torch.tensor([1.5, -2.0, 3.25])
    file = tmp_path / "odd.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + data.numpy().tobytes())
    (stored,) = read_header(file)
    assert stored.start % 2 == 1 and torch.equal(map_tensor(stored), data)


def test_a_file_that_becomes_too_short(file: Path) -> None:
    stored = max(read_header(file), key=lambda stored: stored.start)
    with file.open("r+b") as stream:
        stream.truncate(stored.start)
    with pytest.raises((OSError, ValueError)):
        map_tensor(stored)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_file_larger_than_the_memory_that_is_left(tmp_path: Path) -> None:
    """A sparse file of 1 TB, with an address space of 64 GB above what is mapped already."""
    import resource

    n_bytes, shape = 2**40, [2**20]
    entries = {
        "first": {"dtype": "F32", "shape": shape, "data_offsets": [0, 2**22]},
        "rest": {"dtype": "BF16", "shape": [(n_bytes - 2**22) // 2], "data_offsets": [2**22, n_bytes]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file = tmp_path / "large.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + n_bytes)
    stored = {stored.name: stored for stored in read_header(file)}
    status = Path("/proc/self/status").read_text(encoding="ascii")
    mapped = 1024 * int(status.partition("VmSize:")[2].split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 64 * 2**30, before[1]))
    try:
        assert not map_tensor(stored["first"]).any()
        with pytest.raises(OSError):
            map_tensor(stored["rest"])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
