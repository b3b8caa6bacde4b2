"""The file of answers: whole lines, resumed where it stopped, one writer."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixedge.batch.answer_file import AnswerFile
from pixedge.errors import PixedgeError, UsageError
from tests.exported_demo import ROOT


def line(id, text="yes", error=None):
    return {"id": f"r-{id}", "custom_id": id, "response": {"text": text}, "error": error}


def write(path, *ids, digest="d", failed=()):
    with AnswerFile(path) as file:
        for id in ids:
            file.append(id, digest, id in failed, line(id, error={"code": "x"} if id in failed else None))


def ids(path):
    return [json.loads(text)["custom_id"] for text in path.read_text().splitlines()]


def test_lines_are_json_with_the_digest_of_what_was_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, "one", "two\n\u2028\udc80")
    first, second = map(json.loads, path.read_bytes().split(b"\n")[:-1])
    assert first == line("one") | {"pixedge": {"settings": "d"}}
    assert second["custom_id"] == "two\n\u2028\udc80"


def test_what_is_finished_is_known_again(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, "a", "b")
    with AnswerFile(path) as file:
        assert file.finished({"b": "d", "c": "d"}) == {"b"}


def test_failed_answers_of_the_batch_are_taken_out_to_come_again(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, "a", "b", "c", failed=("b", "c"))
    path.chmod(0o640)
    with AnswerFile(path) as file:
        assert file.finished({"a": "d", "b": "d"}) == {"a"}
        file.append("b", "d", False, line("b"))
    assert ids(path) == ["a", "c", "b"]  # c belongs to another batch and stays
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_an_answer_to_another_question_is_not_taken_for_this_one(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, "a", digest="of another prompt")
    before = path.read_bytes()
    with AnswerFile(path) as file, pytest.raises(UsageError, match="another question"):
        file.finished({"a": "d"})
    assert path.read_bytes() == before


@given(st.integers(1, 120), st.booleans())
def test_half_a_line_at_the_end_is_healed(tmp_path_factory, missing, newline_only):
    path = tmp_path_factory.mktemp("half") / "a.jsonl"
    write(path, "a", "b")
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    cut = 1 if newline_only else min(missing, len(data) - start)
    path.write_bytes(data[:-cut])
    with AnswerFile(path) as file:
        known = file.finished({"a": "d", "b": "d"})
        # without its line end alone the answer is whole
        assert known == ({"a", "b"} if cut == 1 else {"a"})
        file.append("c", "d", False, line("c"))
    assert ids(path) == ([*sorted(known), "c"])


def test_lines_are_put_into_the_order_of_the_inputs(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, "c", "other", "a", "b")
    with AnswerFile(path) as file:
        file.put_in_order(["a", "b", "c", "d"])
        file.append("d", "d", False, line("d"))
        before = path.stat().st_ino
        file.put_in_order(["a", "b", "c", "other", "d"])
        assert path.stat().st_ino == before  # nothing to do
    assert ids(path) == ["a", "b", "c", "other", "d"]


@pytest.mark.parametrize(
    "content",
    [
        "hello\n",
        "[]\n",
        '{"custom_id": "a"}\n',
        '{"custom_id": 1, "error": null, "pixedge": {"settings": "d"}}\n',
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content * 2)
    with pytest.raises(UsageError, match=r"line 1 of .*a\.jsonl is no answer of pixedge batch"):
        AnswerFile(path)
    assert path.read_text() == content * 2


def test_places_that_cannot_be_written_are_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="is a folder; give a file"):
        AnswerFile(tmp_path)
    with pytest.raises(UsageError, match="No such file or directory"):
        AnswerFile(tmp_path / "missing" / "a.jsonl")


def test_what_is_no_file_can_be_written_but_not_resumed():
    with AnswerFile(os.path.join("/dev", "null")) as file:
        assert file.finished({"a": "d"}) == set()
        file.append("a", "d", False, line("a"))
        file.put_in_order(["a"])


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    real = os.write
    with AnswerFile(path) as file:
        file.append("a", "d", False, line("a"))
        calls = []

        def full(handle, data):
            calls.append(len(data))
            if len(calls) == 1:
                return real(handle, data[:20])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(PixedgeError, match=r"a.jsonl cannot be written \(No space left on device\)"):
            file.append("b", "d", False, line("b"))
        monkeypatch.undo()
        file.append("c", "d", False, line("c"))
    assert ids(path) == ["a", "c"]


@pytest.mark.skipif(os.name == "nt", reason="flock is POSIX")
def test_two_programs_do_not_write_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    code = (
        "import sys; from pathlib import Path; from pixedge.batch.answer_file import AnswerFile\n"
        f"with AnswerFile(Path({str(path)!r})): print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(PixedgeError, match="being written by another program"):
            AnswerFile(path)
        other.stdin.close()
        other.wait(30)
    AnswerFile(path).close()
