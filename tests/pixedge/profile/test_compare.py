"""Two profiles beside each other: what counts as a change, and files that are no profiles."""

import copy
import json

import pytest
from rich.console import Console

from pixedge.errors import PixedgeError
from pixedge.profile.compare import compare_records, compare_table, read_before, verdict
from tests.pixedge.profile.made_up import made_up


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1.0, 1.01, 0.99), (0.5, 0.51, 0.49), "faster"),
        ((0.5, 0.51, 0.49), (1.0, 1.01, 0.99), "slower"),
        ((1.0, 1.01, 0.99), (1.005, 1.002, 0.998), "as before"),
        # apart, but by less than two in a hundred
        ((1.0, 1.001, 1.002), (1.01, 1.011, 1.012), "as before"),
        # further apart than that, but one run of each meets the other
        ((1.0, 1.0, 1.5), (1.4, 1.4, 1.4), "as before"),
        # no run meets another, but each side's spread is as large as what lies between
        ((1.0, 1.3, 1.4), (1.41, 1.42, 1.43), "as before"),
        ((1.0,), (0.1, 0.1, 0.1), "not told"),
        ((1.0, 1.0, 1.0), (9.0,), "not told"),
    ],
)
def test_noise_is_not_called_a_change(before, after, expected):
    assert verdict(before, after) == expected


def test_a_verdict_turns_around_with_its_sides():
    fast, slow = (1.0, 1.02, 0.98, 1.0), (1.3, 1.31, 1.29, 1.3)
    assert (verdict(fast, slow), verdict(slow, fast)) == ("slower", "faster")


def test_rows_are_matched_by_name_and_the_machine_is_told():
    before = made_up()
    after = copy.deepcopy(before)
    after["rows"] = [row for row in after["rows"] if row["name"] != "pp512"]
    after["rows"].append(after["rows"][-1] | {"name": "tg32 b16"})
    changed = next(row for row in after["rows"] if row["name"] == "tg128")
    changed["runs"] = [each / 2 for each in changed["runs"]]
    after["machine"]["threads"] = 1
    found = compare_records(before, after)
    assert found["only_before"] == ["pp512"] and found["only_after"] == ["tg32 b16"]
    assert found["differences"] == ["threads 2 before, 1 now"]
    verdicts = {row["name"]: (row["ratio"], row["verdict"]) for row in found["rows"]}
    assert verdicts.pop("tg128") == (0.5, "faster")
    assert verdicts.pop("load") == (1.0, "not told")
    assert set(verdicts.values()) == {(1.0, "as before")}
    assert {"limit: reading memory", "limit: products"} <= verdicts.keys()
    console = Console(width=200)
    with console.capture() as shown:
        console.print(compare_table(found))
    text = shown.get()
    assert "not the same: threads 2 before, 1 now" in text and "measured only before: pp512" in text
    (line,) = (line for line in text.splitlines() if line.startswith(" tg128 "))
    assert "0.50 x" in line and "faster" in line


def test_a_profile_can_be_read_again(tmp_path):
    file = tmp_path / "before.json"
    file.write_text(json.dumps(made_up()))
    assert read_before(file) == json.loads(json.dumps(made_up()))


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("rows"),
        lambda found: found.update(rows=[{"name": "tg128"}]),
        lambda found: found["rows"][0].update(runs=[]),
        lambda found: found["rows"][0].update(runs=[0.0]),
        lambda found: found["rows"][0].update(runs=["1"]),
        lambda found: found["rows"][0].update(runs=[float("nan")]),
        lambda found: found.update(rows=3),
        lambda found: found.update(limits=[]),
        lambda found: found.update(machine=3),
        lambda found: found.update(model=None),
        lambda found: found.pop("date"),
        lambda found: found.pop("format"),
    ],
)
def test_what_is_no_profile_is_said_in_a_sentence(tmp_path, change):
    found = made_up()
    change(found)
    file = tmp_path / "before.json"
    file.write_text(json.dumps(found))
    with pytest.raises(PixedgeError, match=r"is not what pixedge profile --json prints .* give such a file"):
        read_before(file)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000, "\xff"])
def test_other_files(tmp_path, text):
    file = tmp_path / "before.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(PixedgeError, match="is not what pixedge profile --json prints"):
        read_before(file)


def test_a_missing_file_and_another_format(tmp_path):
    with pytest.raises(PixedgeError, match="is missing; make it with pixedge profile --json"):
        read_before(tmp_path / "none.json")
    file = tmp_path / "before.json"
    file.write_text(json.dumps(made_up() | {"format": 99}))
    with pytest.raises(PixedgeError, match="is of format 99, and this pixedge compares 1; profile again"):
        read_before(file)
