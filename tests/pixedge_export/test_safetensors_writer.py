"""Files that the safetensors library reads back, with the permissions of any other file."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pixedge_export.safetensors_header import read_header
from pixedge_export.safetensors_writer import TensorSpec, save_tensors, stream_tensors

TENSORS = {
    "odd": torch.arange(3).to(torch.float16),
    "words": torch.arange(-6, 6, dtype=torch.int32).view(3, 4),
    "half": torch.randn(2, 3, 5).to(torch.bfloat16),
    "turned": torch.randn(4, 7).t(),
}


def test_the_library_reads_back_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS)
    found = load_file(file)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert {stored.name for stored in read_header(file)} == set(TENSORS)


def test_wide_elements_come_first_so_that_every_tensor_is_aligned(tmp_path: Path) -> None:
    """ "odd" has 6 bytes: in front of "words" it would leave that at an offset that 4 does not divide."""
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS)
    assert [stored.name for stored in read_header(file)] == ["words", "turned", "odd", "half"]


def test_the_bytes_do_not_depend_on_anything_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tensors(tmp_path / name, TENSORS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    """The library's own writer gives every file the mode 0600, whatever the umask."""
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "a", TENSORS)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_the_systems_own_error(tmp_path: Path) -> None:
    (tmp_path / "a.new").symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        save_tensors(tmp_path / "a", TENSORS)
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_file_can_be_written_over_while_it_is_mapped(tmp_path: Path) -> None:
    """Were it truncated first, reading its mapped tensors would end the process with a bus error."""
    file = tmp_path / "a"
    large = torch.arange(300_000, dtype=torch.int32)
    save_tensors(file, {"x": large, "y": large + 1})
    mapped = load_file(file)
    save_tensors(file, {"y": mapped["y"], "z": mapped["x"]})
    found = load_file(file)
    assert torch.equal(found["z"], large) and torch.equal(found["y"], large + 1)
    assert torch.equal(mapped["x"], large)


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {"x": torch.ones(2)})

    def tensors() -> Iterator[torch.Tensor]:
        yield torch.zeros(2)
        raise KeyboardInterrupt

    specs = dict.fromkeys(("x", "y"), TensorSpec(torch.float32, (2,)))
    with pytest.raises(KeyboardInterrupt):
        stream_tensors(tmp_path / "a", specs, tensors())
    assert torch.equal(load_file(tmp_path / "a")["x"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_streaming_asks_for_one_tensor_at_a_time(tmp_path: Path) -> None:
    specs = {str(i): TensorSpec(torch.bfloat16, (1024, 1024)) for i in range(3)}
    sizes: list[int] = []

    def tensors() -> Iterator[torch.Tensor]:
        for i in range(3):
            sizes.append((tmp_path / "a.new").stat().st_size)
            yield torch.full((1024, 1024), i, dtype=torch.bfloat16)

    stream_tensors(tmp_path / "a", specs, tensors())
    assert [size // 2**21 for size in sizes] == [0, 1, 2]
    assert [float(tensor.float().mean()) for _, tensor in sorted(load_file(tmp_path / "a").items())] == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("tensor", [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.float16)])
def test_another_tensor_than_announced_is_a_fault(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match=r"x is .* announced as"):
        stream_tensors(tmp_path / "a", {"x": TensorSpec(torch.float32, (3, 2))}, [tensor])
