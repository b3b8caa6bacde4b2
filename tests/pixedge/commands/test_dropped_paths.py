"""Paths that are typed or dropped into a message."""

import contextlib
import os
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixedge.commands.dropped_paths import Message, read_message
from pixedge.errors import ImageError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the names are those of POSIX")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [
        "a.png",
        "B.JPG",
        "it is.png",
        "it's.png",
        "é (1).webp",
        "r.pdf",
        "notes.txt",
        "a.png.txt",
        "a#b?.png",
        'say "a".png',
    ]:
        (tmp_path / name).write_bytes(b"")  # fmt: skip
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
        ("r.pdf[2-3] Sum it up", "Sum it up", ["r.pdf[2-3]"]),
        ("Sum r.pdf[2-3] up", "Sum r.pdf[2-3] up", ["r.pdf[2-3]"]),
        ("a.png.txt notes.txt", "a.png.txt notes.txt", []),
        ("folder.png", "", ["folder.png"]),
        (r"'it'\''s.png' What is it?", "What is it?", ["it's.png"]),
        ("""'it'"'"'s.png'""", "", ["it's.png"]),
        (r"it\'s.png what?", "what?", ["it's.png"]),
        (r'"say \"a\".png" what?', "what?", ['say "a".png']),
        ("it's.png what?", "what?", ["it's.png"]),
        ("it is.png What is it?", "What is it?", ["it is.png"]),
        ("What is in it is.png?", "What is in it is.png?", ["it is.png"]),
        ("file:{home}/it%20is.png", "", ["{home}/it is.png"]),
        ("file://{home}/it%20is.png ~/a.png what?", "what?", ["{home}/it is.png", "{home}/a.png"]),
        ("file://{home}/a%23b%3F.png what?", "what?", ["{home}/a#b?.png"]),
        (
            "*.png What are these?",
            "What are these?",
            ["a#b?.png", "a.png", "it is.png", "it's.png", 'say "a".png'],
        ),
        ("./it*.png", "", ["./it is.png", "./it's.png"]),
        ("{home}/notes.txt what?", "what?", ["{home}/notes.txt"]),
        ("'plain' what?", "'plain' what?", []),
        ("https://a.example/b.png?w=1 what?", "what?", ["https://a.example/b.png?w=1"]),
        ("See https://a.example/ and /etc/fstab, C:\\ too, and/or me", None, []),
        ("What is a .png, and 1.5 or e.g. this?", None, []),
        ("It isn't 'a.png', it's b's", "It isn't a.png, it's b's", ["a.png"]),
        ("  two  spaces\n  stay ", "  two  spaces\n  stay ", []),
        ("first\n\na.png\n\nlast", "first\n\na.png\n\nlast", ["a.png"]),
        ("a\\", "a\\", []),
        ("'", "'", []),
        ("file://[x", "file://[x", []),
    ],
)  # fmt: skip
def test_paths_are_found_and_the_sentence_stays_one(folder, line, text, paths):
    line = line.replace("{home}", str(folder))
    text = line if text is None else text.replace("{home}", str(folder))
    expected = Message(text, tuple(path.replace("{home}", str(folder)) for path in paths))
    assert read_message(line) == expected


@pytest.mark.parametrize(
    "line, words",
    [
        ("/no/such/none.png What colour is the star?", "/no/such/none.png does not exist"),
        ("none.png What colour is the star?", "none.png does not exist"),
        ("NONE.JPG", "NONE.JPG does not exist"),
        ("./none.png What colour is the star?", "./none.png does not exist"),
        ("~/none.png What colour is the star?", "~/none.png does not exist"),
        ("$HOME/none.png What colour is the star?", "$HOME/none.png does not exist"),
        ("What colour is the star in /no/such/shapes.png?", "/no/such/shapes.png does not exist"),
        ("What colour is the star in sub/shapes.png?", "sub/shapes.png does not exist"),
        ("a.png none.png Compare them.", "none.png does not exist"),
        ("no/sh*.png What colour is the star?", "no/sh*.png matches no file"),
        ("q*.png What colour is the star?", "q*.png matches no file"),
        ("x.svg What colour is the star?", "x.svg is not a picture that pixedge can read (.svg)"),
        ("{home}/film.mp4 what?", "film.mp4 is not a picture that pixedge can read (.mp4)"),
        (r"C:\Pictures\pic.png What colour is the star?", r"C:\Pictures\pic.png does not exist"),
        (r'"C:\My Pictures\pic.png" What colour?', r"C:\My Pictures\pic.png does not exist"),
        (r"\\server\share\pic.png What colour?", r"\\server\share\pic.png does not exist"),
        (r"'no it'\''s.png' what?", "no it's.png does not exist"),
        ('"no it is.png" what?', "no it is.png does not exist"),
        (r"no\ it\ is.png what?", "no it is.png does not exist"),
        ("what? 'no it is.png'", "no it is.png does not exist"),
        ("file://{home}/none.png what?", "none.png does not exist"),
        ("file://elsewhere{home}/a.png", "a.png does not exist"),
        ("none.pdf[2-3] Sum it up", "none.pdf[2-3] does not exist"),
        ("{home}/sub what?", "{home}/sub is a folder; name its pictures, as {home}/sub/*.jpg"),
        ("a\0.png", "does not exist"),
        ("https://a.example/b.svg what?", "https://a.example/b.svg is not a picture"),
    ],
)  # fmt: skip
def test_what_is_spelt_like_a_path_and_is_none_is_an_error(folder, line, words):
    """It went to the model as text, which then made an answer up."""
    (folder / "sub").mkdir()
    with pytest.raises(ImageError) as caught:
        read_message(line.replace("{home}", str(folder)))
    assert words.replace("{home}", str(folder)) in str(caught.value)


def test_a_bare_name_within_a_sentence_is_doubtful(folder):
    text = "What is in none.png, and in a.png and none.pdf?"
    assert read_message(text) == Message(text, ("a.png",), ("none.png", "none.pdf"))
    prose = "What's in Bob's.png, and isn't it in 'quotes'? Why are *.png files larger than *.jpg?"
    assert read_message(prose) == Message(prose, (), ("Bob's.png", "*.png", "*.jpg"))


@given(
    st.lists(
        st.sampled_from(["'", '"', "\\", " ", "a.png", "/", "~", ".png", "(", "file://", "x", "\n"]),
        max_size=30,
    )
)
def test_any_quoting_is_read_or_refused(parts):
    try:
        message = read_message("".join(parts))
    except ImageError:
        return
    assert all(os.path.exists(path) for path in message.paths)


def test_a_long_message_takes_no_long_time():
    """Quotes that are never closed, and backslashes within them, made such patterns take exponential time."""
    for text in (
        '"' + "\\\\" * 50_000,
        "' " * 50_000,
        "'" + "a.png " * 5_000,
        '"\\a' * 30_000,
        "(" * 100_000,
    ):
        with contextlib.suppress(ImageError):
            read_message(text)


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
