"""The record of the last export."""

import json
import os
from pathlib import Path

import pytest

from pixedge.last_export import read_last_export, record_file, write_last_export


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))
    return tmp_path / "state"


def test_none_before_the_first():
    assert read_last_export() is None


def test_the_latest_is_read_back_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_last_export(Path("one"))
    write_last_export(Path("zwei ü"))
    assert read_last_export() == tmp_path / "zwei ü"
    assert [file.name for file in record_file().parent.iterdir()] == ["last_export.json"]


def test_it_lies_in_the_state_folder(state):
    assert record_file() == state / "pixedge" / "last_export.json"


@pytest.mark.skipif(os.name == "nt", reason="XDG_STATE_HOME is not used on Windows")
def test_a_relative_or_empty_state_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("relative", ""):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert record_file() == tmp_path / ".local" / "state" / "pixedge" / "last_export.json"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"folder": 3}', '{"folder": ""}', "\xff"])
def test_a_damaged_record_is_none(text):
    record_file().parent.mkdir(parents=True)
    record_file().write_bytes(text.encode("latin-1"))
    assert read_last_export() is None


def test_a_failed_write_keeps_the_old_record_and_leaves_nothing(tmp_path, monkeypatch):
    write_last_export(tmp_path / "old")

    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write_last_export(tmp_path / "new")
    assert read_last_export() == tmp_path / "old"
    assert len(list(record_file().parent.iterdir())) == 1
    assert json.loads(record_file().read_text()) == {"folder": str(tmp_path / "old")}
