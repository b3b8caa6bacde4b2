"""The machine's limits: what was timed, how often, and what follows from it."""

import pytest
import torch

from pixedge.profile.limits import Limits, measure_limits
from pixedge.profile.samples import Samples

CPU = torch.device("cpu")


def test_the_first_time_does_not_count_and_rates_are_those_of_the_median():
    found = measure_limits(CPU, torch.bfloat16, times=3, size=1 << 22)
    assert len(found.reading.seconds) == len(found.products.seconds) == 3
    assert found.bytes == 1 << 22 and found.operations == 2 * int((found.bytes / 8) ** 0.5) ** 3
    assert found.bytes_per_second == found.bytes / found.reading.median > 1e7
    assert found.operations_per_second == found.operations / found.products.median > 1e7


def test_what_is_measured_later_is_joined():
    early = Limits(10, 20, Samples((1.0,)), Samples((2.0, 4.0)))
    late = Limits(10, 20, Samples((3.0, 5.0)), Samples((6.0,)))
    both = early.and_later(late)
    assert both.reading.seconds == (1.0, 3.0, 5.0) and both.bytes_per_second == 10 / 3
    assert both.operations_per_second == 5
    with pytest.raises(AssertionError):
        early.and_later(Limits(11, 20, late.reading, late.products))
