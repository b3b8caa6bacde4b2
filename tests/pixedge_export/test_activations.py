"""Streams on disk: what is read is what was written, and what was there stays until it is forgotten."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixedge_export.activations import Activations, StoredStreams, StreamLengths
from pixedge_export.layers import STREAMS

LENGTHS = StreamLengths([3, 1, 4], [2, 5], 6)


def draw(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, LENGTHS.dim, generator=generator) for length in lengths]


def assert_same(found: object, expected: list[Tensor]) -> None:
    found = list(found)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def begin(folder: Path) -> StoredStreams:
    streams = StoredStreams(folder, {}, LENGTHS)
    streams.move("calibration", draw(LENGTHS.calibration, 1))
    streams.share("target", "calibration")
    streams.move("dense", draw(LENGTHS.held_out, 2))
    streams.share("rtn", "dense")
    streams.share("quantized", "dense")
    return streams


def test_samples_come_back_one_by_one(tmp_path: Path) -> None:
    samples = draw(LENGTHS.calibration, 0)
    stored = Activations(tmp_path / "x", LENGTHS.calibration, LENGTHS.dim)
    stored.save(sample.double() for sample in samples)
    assert stored.file.stat().st_size == stored.nbytes == 8 * 6 * 4
    assert_same(stored, samples)
    assert torch.equal(stored[-1], samples[2]) and torch.equal(stored[1], samples[1])
    assert_same(stored[1:], samples[1:])
    with pytest.raises(IndexError):
        stored[3]


def test_a_sample_may_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    stored = Activations(tmp_path / "x", [2], 6)
    stored.save(draw([2], 0))
    stored[0].zero_()
    assert_same(stored, draw([2], 0))


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_stream_that_fails_leaves_the_one_before(tmp_path: Path, error: type[BaseException]) -> None:
    stored = Activations(tmp_path / "x", [2, 5], 6)
    stored.save(draw([2, 5], 0))

    def broken() -> object:
        yield draw([2], 1)[0]
        raise error

    with pytest.raises(error):
        stored.save(broken())
    assert_same(stored, draw([2, 5], 0))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_moving_keeps_the_past_until_it_is_forgotten(tmp_path: Path) -> None:
    """What a killed run reads again: the files as they were in front of the layer."""
    streams = begin(tmp_path)
    past = dict(streams.files)
    assert set(past) == set(STREAMS)
    for name in ("dense", "target", "rtn", "calibration", "quantized"):
        streams.move(name, (2 * x for x in getattr(streams, name)))
    again = StoredStreams(tmp_path, past, LENGTHS)
    assert again.are_whole()
    for name in ("calibration", "target"):
        assert_same(getattr(again, name), draw(LENGTHS.calibration, 1))
        assert_same(getattr(streams, name), [2 * x for x in draw(LENGTHS.calibration, 1)])
    for name in ("dense", "rtn", "quantized"):
        assert_same(getattr(again, name), draw(LENGTHS.held_out, 2))
        assert_same(getattr(streams, name), [2 * x for x in draw(LENGTHS.held_out, 2)])
    streams.forget_past()
    assert streams.are_whole() and not again.are_whole()
    assert {path.name for path in tmp_path.iterdir()} == set(streams.files.values())


def test_streams_go_on_for_many_layers(tmp_path: Path) -> None:
    streams = begin(tmp_path)
    for _ in range(5):
        for name in STREAMS:
            streams.move(name, (x + 1 for x in getattr(streams, name)))
        streams.forget_past()
        assert len(list(tmp_path.iterdir())) == len(STREAMS)
    assert_same(streams.quantized, [sum([1] * 5, x) for x in draw(LENGTHS.held_out, 2)])


def test_a_file_that_is_cut_short_is_not_whole(tmp_path: Path) -> None:
    streams = begin(tmp_path)
    with streams.calibration.file.open("r+b") as file:
        file.truncate(streams.calibration.nbytes - 1)
    assert not streams.are_whole()
    assert not StoredStreams(tmp_path, {}, LENGTHS).are_whole()


def test_the_bytes_foreseen_are_the_most_there_can_be(tmp_path: Path) -> None:
    streams = begin(tmp_path)
    for turn in range(2):
        for name in ("middle", *STREAMS):
            streams.move(name, iter(getattr(streams, "calibration" if name == "middle" else name)))
        most = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert most == LENGTHS.nbytes if turn else most < LENGTHS.nbytes
        streams.drop("middle")
        streams.forget_past()
        assert not list(tmp_path.glob("middle.*"))
