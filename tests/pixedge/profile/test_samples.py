"""Runs that are timed: how many are made, which of them count, and what is told of them."""

import pytest

from pixedge.profile.samples import LONG_WARM_UP, Samples, repeat


def played(seconds):
    """Give a run that takes the seconds in turn, and the list of what it was asked."""
    asked = []

    def run(number):
        asked.append(number)
        return seconds[len(asked) - 1]

    return run, asked


def test_median_and_spread():
    samples = Samples((3.0, 1.0, 2.0, 10.0, 4.0))
    assert samples.median == 3.0
    assert samples.spread == 1.0  # quartiles 2 and 4
    assert Samples((2.0,)).spread is None


def test_nothing_measured_is_no_measurement():
    with pytest.raises(AssertionError):
        Samples(())


def test_the_first_run_does_not_count():
    run, asked = played([100e-3, 1.0, 2.0, 3.0])
    assert repeat(run, 3, enough=60).seconds == (1.0, 2.0, 3.0)
    assert asked == [0, 1, 2, 3]


def test_a_warm_up_of_its_own_takes_its_place():
    run, asked = played([1.0, 2.0])
    warmed = []
    assert repeat(run, 2, enough=60, warm_up=lambda: warmed.append(True)).seconds == (1.0, 2.0)
    assert warmed == [True] and asked == [1, 2]


@pytest.mark.parametrize(("each", "runs"), [(0.5, 5), (1.0, 5), (1.3, 4), (2.0, 3), (4.0, 3)])
def test_enough_time_ends_it_after_three(each, runs):
    run, _ = played([each] * 9)
    assert len(repeat(run, 5, enough=5).seconds) == runs


def test_a_run_that_is_very_long_counts_at_once_and_comes_twice():
    run, asked = played([2 * LONG_WARM_UP, 2.5 * LONG_WARM_UP, 1.0])
    assert repeat(run, 5, enough=1).seconds == (2 * LONG_WARM_UP, 2.5 * LONG_WARM_UP)
    assert asked == [0, 2]


def test_one_repeat_is_one_run():
    run, _ = played([1.0, 2.0])
    assert repeat(run, 1, enough=5).seconds == (2.0,)
