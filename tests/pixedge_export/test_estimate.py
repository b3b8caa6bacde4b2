"""What is told before an export begins: the sums by hand, what changes them, and the words."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixedge.config import ModelConfig
from pixedge.errors import CapacityError
from pixedge_export import estimate as estimate_module
from pixedge_export.activations import StreamLengths
from pixedge_export.estimate import GB, Estimate, estimate, free_ram
from pixedge_export.layers import Recipe
from pixedge_export.synthetic import PIXTRAL_12B
from pixedge_export.writer import estimate_bytes

CPU = torch.device("cpu")
LENGTHS = StreamLengths([512] * 16, [512] * 4, 5120)


@pytest.fixture(autouse=True)
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "_products_a_second", lambda device: 1e11)


def of(config: ModelConfig = PIXTRAL_12B, recipe: Recipe | None = None, **options: object) -> Estimate:
    arguments = {"lengths": LENGTHS, "pixels": 10**6, "device": CPU} | options
    return estimate(config, recipe or Recipe(), **arguments)


def with_layers(n: int) -> ModelConfig:
    return replace(PIXTRAL_12B, decoder=replace(PIXTRAL_12B.decoder, n_layers=n))


def test_memory_does_not_depend_on_the_number_of_layers() -> None:
    """And it is what a person with 16 GB has: the promise is 6 GiB for 16 samples of 512 tokens."""
    assert of(with_layers(2)).ram == of(with_layers(6)).ram == of().ram < 6 * 2**30


def test_time_grows_with_layers_and_falls_with_those_that_are_done() -> None:
    two, four, six = (of(with_layers(n)).seconds for n in (2, 4, 6))
    assert six - four == pytest.approx(four - two) and two < four < 2 * two
    assert of(done=30).seconds == pytest.approx(of(with_layers(10)).seconds)
    assert of(recipe=Recipe("rtn")).seconds < of().seconds / 2


def test_disk_holds_the_artifact_and_the_streams() -> None:
    tokens = 2.5 * sum(LENGTHS.calibration) + 3 * sum(LENGTHS.held_out)
    assert of().disk == estimate_bytes(PIXTRAL_12B, Recipe()) + 2 * 4 * 5120 * tokens


def test_longer_samples_take_more_memory_only_by_their_length() -> None:
    long = StreamLengths([4096] * 16, [4096] * 4, 5120)
    many = StreamLengths([512] * 160, [512] * 40, 5120)
    assert of(lengths=many).ram == of().ram < of(lengths=long).ram


def test_a_gpu_takes_the_layers() -> None:
    """The promise for it is 8 GiB for 128 samples of 2,048 tokens."""
    lengths = StreamLengths([2048] * 128, [2048] * 32, 5120)
    found = of(lengths=lengths, device=torch.device("cuda:0"))
    assert of(lengths=lengths).gpu == 0 < found.gpu < 8 * 2**30
    assert found.ram < of(lengths=lengths).ram


def test_what_fits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "free_ram", lambda: 16 * GB)
    usage = estimate_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=20 * GB))
    told = Estimate(5.62 * GB, 0, 10.4 * GB, 3 * 3600 + 20 * 60).check(tmp_path, CPU)
    assert (
        told == "takes about 5.6 GB of memory (16.0 GB free), 10.4 GB of disk (20.0 GB free) and 3 h 20 min"
    )


def test_what_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "free_ram", lambda: 4 * GB)
    usage = estimate_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=5 * GB))
    with pytest.raises(CapacityError) as raised:
        Estimate(5.62 * GB, 0, 10.4 * GB, 30).check(tmp_path, CPU)
    assert str(raised.value) == (
        "the export takes about 5.6 GB of memory (4.0 GB free), 10.4 GB of disk (5.0 GB free) and 30 s, so "
        "the memory and the disk will not do; free some, use fewer or smaller samples, or try all the same "
        "with --force"
    )


def test_what_is_written_already_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "shard").write_bytes(bytes(3000))
    usage = estimate_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    assert "(4.0 kB free)" in Estimate(0, 0, 3900, 0).check(tmp_path, CPU)
    with pytest.raises(CapacityError):
        Estimate(0, 0, 4100, 0).check(tmp_path, CPU)


def test_a_system_that_does_not_tell_its_memory_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "free_ram", lambda: None)
    assert Estimate(10**15, 0, 0, 0).check(tmp_path, CPU).startswith("takes about 1000 TB of memory, 0 B of")


def test_this_machine_tells_its_memory() -> None:
    found = free_ram()
    assert found is None or 10**7 < found < 10**14
