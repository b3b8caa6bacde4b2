"""Peaks by phase: a phase's own, and no other's."""

import sys

import pytest
import torch

from pixedge.profile import memory_meter
from pixedge.profile.memory_meter import MemoryMeter, Peak

CPU = torch.device("cpu")
MIB = 1 << 20


def hold(mebibytes):
    return torch.ones(mebibytes * MIB, dtype=torch.uint8)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be reset")
def test_a_peak_belongs_to_its_phase():
    meter = MemoryMeter(CPU)
    with meter.phase("before"):
        pass
    with meter.phase("large"):
        hold(300)
    with meter.phase("after"):
        pass
    with meter.phase("kept"):
        kept = hold(100)
    with meter.phase("behind"):
        pass
    before, large, after, now, behind = (peak.rss for peak in meter.peaks)
    assert large - before > 280 * MIB
    assert abs(after - before) < 60 * MIB
    assert now - after > 80 * MIB < behind - after
    assert kept.sum() == 100 * MIB


def test_a_phase_that_comes_again_keeps_the_most_and_its_place(monkeypatch):
    told = iter((5, 9, 7))
    monkeypatch.setattr(memory_meter, "_forget_peak", lambda: True)
    monkeypatch.setattr(memory_meter, "_peak", lambda: next(told))
    meter = MemoryMeter(CPU)
    for name in ("one", "two", "one"):
        with meter.phase(name):
            pass
    assert meter.peaks == [Peak("one", 7), Peak("two", 9)]


def test_where_a_peak_cannot_be_reset_none_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_meter, "_CLEAR", tmp_path / "none" / "clear_refs")
    meter = MemoryMeter(CPU)
    with meter.phase("one"):
        pass
    assert meter.peaks == [Peak("one", None)]


def test_a_gpu_tells_what_torch_took_and_what_is_taken_of_it_at_all(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    device = torch.device("cuda", 1)
    meter = MemoryMeter(device)
    with meter.phase("one"):
        assert asked == [device]
    (peak,) = meter.peaks
    assert (peak.torch, peak.device) == (40, 70)
