"""Names of files: patterns, names that look like patterns, and what lies there that is no file."""

import glob
import os
import re
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixedge import named_pipe
from pixedge.batch.picture_files import find_files
from pixedge.errors import ImageError
from pixedge.image import ImageLimits, read_bytes
from pixedge.path_patterns import expand_names, irregular, match_pattern

POSIX = pytest.mark.skipif(os.name == "nt", reason="the names and kinds of files are those of POSIX")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("page10.png", "page2.png", "Page1.png", "note.txt", "odd[1].png", "sub/deep.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_patterns_expand_in_natural_order():
    assert expand_names(["page*.png", "note.txt"]) == ["page2.png", "page10.png", "note.txt"]
    assert expand_names(["[Pp]age*.png"]) == ["Page1.png", "page2.png", "page10.png"]
    assert expand_names(["page?.png", "page2.png"]) == ["page2.png", "page2.png"]
    assert expand_names([os.path.join("**", "deep.png")]) == [os.path.join("sub", "deep.png")]
    assert expand_names([os.path.join("**", "page2.png")]) == ["page2.png"]
    assert "sub" not in expand_names(["*"])


@pytest.mark.usefixtures("folder")
def test_literal_arguments_stay():
    args = ["odd[1].png", "-", "missing.png", "https://a.example/x.png?size=1", "HTTP://a.example/[x]"]
    assert expand_names(args) == args
    assert expand_names([]) == []


@pytest.mark.usefixtures("folder")
def test_a_pattern_without_files_is_an_error():
    for pattern in ("*.gif", "s*b", "none/*.png"):
        with pytest.raises(ImageError, match=re.escape(pattern) + " matches no file"):
            expand_names([pattern])


# Brackets, stars and question marks in the names of what exists


@POSIX
@pytest.mark.parametrize("name", ["in [2024]", "[a", "what?", "**", "a*b", "[!x]", "x[1-3].pdf[2]"])
def test_an_existing_folder_is_taken_literally(folder, name):
    """A pattern below `in [2024]` matched nothing: glob took the folder's brackets for a set of letters."""
    below = folder / name / "more [x]"
    below.mkdir(parents=True)
    for file in ("a.png", "b?.png"):
        (below / file).touch()
        (folder / name / file).touch()
    assert expand_names([f"{name}/*.png"]) == [f"{name}/a.png", f"{name}/b?.png"]
    assert expand_names([f"{folder}/{name}/more [x]/[ab]*.png"]) == [f"{below}/a.png", f"{below}/b?.png"]
    assert expand_names([f"./{name}/b?.png"]) == [f"./{name}/b?.png"]
    assert expand_names([f"{name}/*/b?.png"]) == [f"{name}/more [x]/b?.png"]
    assert f"{name}/more [x]/a.png" in expand_names([f"{name}/**/a.png"])


@POSIX
def test_what_exists_comes_before_what_a_pattern_would_match(folder):
    (folder / "odd1.png").touch()
    assert expand_names(["odd[1].png"]) == ["odd[1].png"]
    assert expand_names(["odd[12].png"]) == ["odd1.png"]


@POSIX
@given(
    st.text("ab*?[]!.-", min_size=1, max_size=5).filter(lambda name: name not in (".", "..")),
    st.text("ab*?[]!", min_size=1, max_size=4),
)
def test_patterns_match_as_glob_matches_them_below_an_escaped_folder(tmp_path_factory, name, last):
    """glob, told by escapes what is literal, is the judge."""
    base = tmp_path_factory.getbasetemp() / "patterns"
    for made in (name, "a", "b"):
        (base / made).mkdir(parents=True, exist_ok=True)
        (base / made / "ab").touch()
    if (last.strip("*") == "" and len(last) > 1) or (base / name / last).exists():
        return
    expected = glob.glob(f"{glob.escape(str(base / name))}/{last}")
    assert sorted(match_pattern(f"{base}/{name}/{last}")) == sorted(expected) or not glob.has_magic(last)


# What is no file


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A folder with one picture's name and everything else that a name can lead to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"bytes")
    (tmp_path / "link.png").symlink_to("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipelink.png").symlink_to("pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        yield tmp_path


ODD = {
    "pipe.png": "a named pipe",
    "pipelink.png": "a named pipe",
    "folder.png": "a folder",
    "gone.png": "a link that leads nowhere",
    "loop.png": "a link that leads nowhere",
    "device.png": "a device",
    "socket.png": "a socket",
}


@POSIX
def test_a_pattern_leaves_out_what_is_no_file_and_says_what(odd):
    left_out = {}
    assert expand_names(["*.png"], left_out.__setitem__) == ["a.png", "link.png"]
    assert left_out == ODD
    assert irregular("a.png") is None and irregular("none.png") is None
    with pytest.raises(ImageError, match=r"p\*\.png matches no file, only pipe\.png, a named pipe"):
        expand_names(["p*.png"])


@POSIX
def test_a_batch_of_a_folder_leaves_the_same_out(odd, capsys):
    """A named pipe in a folder let a batch wait for ever, without a word."""
    (odd / "folder.png" / "b.png").touch()
    assert find_files(["."]) == (["a.png", "link.png", "folder.png/b.png"], 0)
    said = capsys.readouterr().err
    assert said.startswith("left out: device.png, a device; gone.png, a link that leads nowhere; ")
    assert said.endswith("and 3 more\n")
    with pytest.raises(ImageError, match="holds no pictures"):
        (odd / "only").mkdir()
        os.mkfifo(odd / "only" / "p.png")
        find_files(["only"])
    assert capsys.readouterr().err == "left out: only/p.png, a named pipe\n"


@POSIX
@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_is_a_sentence_and_never_waits(odd, name, monkeypatch):
    monkeypatch.setattr(named_pipe, "WRITER_SECONDS", 0.05)
    with pytest.raises(ImageError) as caught:
        read_bytes(odd / name, name, ImageLimits())
    words = "nothing is written into this pipe" if "pipe" in name else ODD[name]
    if name == "loop.png":
        words = "symbolic links"
    assert words in str(caught.value) and str(caught.value).startswith(name)


@POSIX
def test_a_pipe_into_which_somebody_writes_is_read(odd):
    """A shell's <(command) is one; the writer may come later, write in parts, and pause."""

    def write():
        time.sleep(0.1)
        with open(odd / "pipe.png", "wb", buffering=0) as pipe:
            for part in (b"one ", b"two"):
                pipe.write(part)
                time.sleep(0.1)

    thread = threading.Thread(target=write)
    thread.start()
    assert read_bytes(odd / "pipe.png", "pipe.png", ImageLimits()) == b"one two"
    thread.join()


@POSIX
def test_a_silent_writer_is_not_waited_for_for_ever(odd, monkeypatch):
    monkeypatch.setattr(named_pipe, "SILENCE_SECONDS", 0.05)
    held = os.open(odd / "pipe.png", os.O_RDWR)
    try:
        with pytest.raises(ImageError, match="nothing is written"):
            read_bytes(odd / "pipe.png", "pipe.png", ImageLimits())
    finally:
        os.close(held)
