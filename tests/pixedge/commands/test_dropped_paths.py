"""Paths that are typed or dropped into a message."""

import os
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixedge.commands.dropped_paths import Message, read_message

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the names are those of POSIX")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ["a.png", "B.JPG", "it is.png", "it's.png", "é (1).webp", "r.pdf", "notes.txt", "a.png.txt"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "line, text, paths",
    [
        ("What is this?", "What is this?", []),
        ("a.png", "", ["a.png"]),
        ("a.png What is this?", "What is this?", ["a.png"]),
        ("What is in a.png?", "What is in a.png?", ["a.png"]),
        ("Compare a.png, B.JPG; ./a.png.", "Compare a.png, B.JPG; a.png.", ["a.png", "B.JPG", "./a.png"]),
        ("(see a.png)", "(see a.png)", ["a.png"]),
        ("'it is.png' What is it?", "What is it?", ["it is.png"]),
        ("What is it? \"it is.png\"", "What is it?", ["it is.png"]),
        (r"it\ is.png What is it?", "What is it?", ["it is.png"]),
        (r"What is it? it\ is.png ", "What is it?", ["it is.png"]),
        (r"é\ \(1\).webp", "", ["é (1).webp"]),
        ("\"it's.png\"", "", ["it's.png"]),
        ("'it is.png' 'a.png'", "", ["it is.png", "a.png"]),
        ("~/a.png and", "and", ["{home}/a.png"]),
        ("{home}/a.png what?", "what?", ["{home}/a.png"]),
        ("what? {home}/a.png", "what?", ["{home}/a.png"]),
        ("file://{home}/it%20is.png what?", "what?", ["{home}/it is.png"]),
        ("file://localhost{home}/a.png", "", ["{home}/a.png"]),
        ("file://elsewhere{home}/a.png", "file://elsewhere{home}/a.png", []),
        ("r.pdf[2-3] Sum it up", "Sum it up", ["r.pdf[2-3]"]),
        ("Sum r.pdf[2-3] up", "Sum r.pdf[2-3] up", ["r.pdf[2-3]"]),
        ("none.png notes.txt folder.png a.png.txt", "none.png notes.txt folder.png a.png.txt", []),
        ("It isn't 'a.png', it's b's", "It isn't a.png, it's b's", ["a.png"]),
        ("  two  spaces\n  stay ", "  two  spaces\n  stay ", []),
        ("first\n\na.png\n\nlast", "first\n\na.png\n\nlast", ["a.png"]),
        ("a\\", "a\\", []),
        ("'", "'", []),
        ("file://[x", "file://[x", []),
        ("a\0.png", "a\0.png", []),
    ],
)  # fmt: skip
def test_paths_are_found_and_the_sentence_stays_one(folder, line, text, paths):
    line, text = line.replace("{home}", str(folder)), text.replace("{home}", str(folder))
    expected = Message(text, tuple(path.replace("{home}", str(folder)) for path in paths))
    assert read_message(line) == expected


@pytest.mark.parametrize(
    "written",
    [
        lambda path: f"'{path}'",
        lambda path: f'"{path}"',
        lambda path: "".join(c if c.isalnum() or c in "/._-" else "\\" + c for c in path),
        lambda path: "file://" + quote(path),
    ],
)
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/\0\r\n'\"", exclude_categories=["Cs"]),
                    min_size=1, max_size=20))  # fmt: skip
def test_a_dropped_file_is_found_whatever_its_name(tmp_path_factory, written, name):
    folder = tmp_path_factory.getbasetemp() / "dropped"
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.png"
    try:
        file.write_bytes(b"")
    except OSError:  # longer than a name may be
        return
    path = str(file)
    assert read_message(f"{written(path)} ") == Message("", (path,))
    assert read_message(f"{written(path)} What is it?") == Message("What is it?", (path,))
    assert read_message(f"What is it? {written(path)}") == Message("What is it?", (path,))
    file.unlink()


@given(st.text(max_size=60))
def test_any_text_without_paths_stays_as_it_is(text):
    assert read_message(text) == Message(text, ())
