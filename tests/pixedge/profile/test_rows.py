"""Rows: what is reckoned for more layers, the limits, and what binds."""

import pytest

from pixedge.prediction import Machine, Stage
from pixedge.profile.rows import Row, binding, limit_seconds, row_record
from pixedge.profile.samples import Samples

MACHINE = Machine("m", 100.0, 1000.0, ((1, 0.5), (4, 0.25)), 0.8, 0.4, measured=True, attention=0.1)


def row(**given):
    return Row(**({"name": "tg8", "stage": "decode", "samples": Samples((2.0, 1.0, 3.0))} | given))


def test_layers_grow_and_the_rest_does_not():
    found = row(layered=True, rest=0.5)
    assert found.reckoned(40, made=4) == 0.5 + 1.5 * 10
    assert found.reckoned(4, made=4) is None
    assert row(layered=False).reckoned(40, made=4) is None


def test_a_rest_that_was_measured_longer_than_the_whole_leaves_nothing_to_grow():
    assert row(layered=True, rest=9.0).reckoned(40, made=4) == 2.0


def test_a_stage_is_bound_by_the_slower_of_its_limits():
    reading, multiplying = Stage(200.0, 100.0), Stage(10.0, 3000.0)
    assert limit_seconds([reading, multiplying], MACHINE) == 2.0 + 3.0
    assert binding([reading, multiplying], MACHINE) == "operations"
    assert binding([reading] * 2 + [multiplying], MACHINE) == "bandwidth"
    assert limit_seconds([], MACHINE) is binding([], MACHINE) is None


def test_the_object_of_a_row():
    work = (Stage(50.0, 1.0),) * 8
    found = row_record(
        row(work=work, begin=work[0], amount=8, layered=True, rest=1.0, tokens=8), MACHINE, 10, 2
    )
    assert found["seconds"] == 2.0 and found["spread"] == 0.5 and found["runs"] == [2.0, 1.0, 3.0]
    assert found["rate"] == 4.0 and found["unit"] == "tokens"
    assert found["limit_seconds"] == 4.0 and found["share_of_limit"] == 2.0 and found["bound"] == "bandwidth"
    assert found["predicted_seconds"] == 8.0  # half of the limit is what such a machine reaches
    assert found["reckoned_seconds"] == 6.0 and found["reckoned_rate"] == pytest.approx(8 / 6, abs=1e-3)


@pytest.mark.parametrize(("answers", "share"), [(1, 0.5), (3, 0.5), (4, 0.25), (16, 0.25)])
def test_a_prediction_goes_by_the_answers_at_a_time(answers, share):
    work = Stage(100.0, 1.0)
    found = row_record(row(work=(work,), begin=work, answers=answers), MACHINE, 2, 2)
    assert found["predicted_seconds"] == 1.0 / share


def test_keys_and_values_of_what_stands_before_are_read_at_a_share_of_their_own():
    """A step of 100 bytes of weights and 10 of keys: 1 s over 0.5, and 0.1 s over 0.1."""
    found = row_record(row(work=(Stage(110.0, 1.0),), begin=Stage(100.0, 1.0)), MACHINE, 2, 2)
    assert found["predicted_seconds"] == pytest.approx(2.0 + 1.0)


def test_a_first_token_is_pictures_and_then_the_prompt():
    work = (Stage(1.0, 400.0), Stage(1.0, 800.0))
    found = row_record(row(stage="first_token", work=work, encodings=1), MACHINE, 2, 2)
    assert found["predicted_seconds"] == pytest.approx(0.4 / 0.4 + 0.8 / 0.8)
    assert found["rate"] is found["unit"] is found["reckoned_seconds"] is None
