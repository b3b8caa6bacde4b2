"""--image values: patterns, pages of documents, limits over all of them."""

import io
import sys

import pytest
from PIL import Image

from pixedge.commands import pictures
from pixedge.commands.pictures import read_pictures
from pixedge.errors import ImageError, UsageError
from tests import pdf_files

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a two-page report, a one-page note and a picture, as the working directory."""
    pdf_files.write(tmp_path / "report.pdf", pdf_files.coloured((1, 0, 0), (0, 1, 0)))
    pdf_files.write(tmp_path / "note.pdf", pdf_files.coloured((0, 0, 1)))
    Image.new("RGB", (30, 20), (9, 9, 9)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def colours(*sources, **options):
    found, seconds = read_pictures(sources, **options)
    assert seconds > 0
    return [picture.getpixel((2, 2)) for picture in found]


def test_documents_and_pictures_keep_the_order_given(folder):
    assert colours("photo.png", "report.pdf", "note.pdf") == [(9, 9, 9), RED, GREEN, BLUE]
    assert colours("report.pdf[2]", "photo.png") == [GREEN, (9, 9, 9)]


def test_pages_behind_a_pattern_go_to_each_file(folder):
    assert colours("*.pdf[1]") == [BLUE, RED]


def test_a_file_may_have_brackets_in_its_name(folder):
    (folder / "note.pdf").rename(folder / "report.pdf[2]")
    assert colours("report.pdf[2]") == [BLUE]


def test_a_document_on_standard_input(folder, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO((folder / "report.pdf").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert colours("-") == [RED, GREEN]


def test_pages_are_as_large_as_the_model_takes_them(folder):
    assert read_pictures(["note.pdf"])[0][0].size == (1024, 512)
    assert read_pictures(["note.pdf"], None, lambda: 96)[0][0].size == (96, 48)
    assert read_pictures(["note.pdf"], 36, lambda: 96)[0][0].size == (96, 48)
    assert read_pictures(["note.pdf"], 18, lambda: 96)[0][0].size == (50, 25)


def test_the_model_is_not_looked_at_for_a_picture(folder):
    def longest():
        raise AssertionError

    assert len(read_pictures(["photo.png"], None, longest)[0]) == 1


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("photo.png[2]", ImageError, "matches no file"),
        ("report.pdf[3]", ImageError, "no page 3"),
        ("report.pdf[two]", UsageError, "does not name pages"),
        ("missing.pdf[1]", ImageError, "missing.pdf does not exist"),
        ("fake.pdf[1]", ImageError, r"fake.pdf is not a PDF, so it has no pages to choose; leave \[1\] out"),
        ("empty.pdf[1]", ImageError, "empty.pdf is empty"),
    ],
)
def test_wrong_pages_are_a_sentence(folder, source, kind, words):
    (folder / "photo.png").with_name("fake.pdf").write_bytes((folder / "photo.png").read_bytes())
    (folder / "empty.pdf").touch()
    with pytest.raises(kind, match=words):
        read_pictures([source])


def test_the_limit_on_pictures_counts_pages(folder):
    pdf_files.write(folder / "long.pdf", pdf_files.coloured(*[(1, 0, 0)] * 63))
    assert len(read_pictures(["long.pdf", "photo.png"], 10)[0]) == 64
    with pytest.raises(ImageError, match=r"long.pdf would give 63 pages and the limit is 62; name fewer"):
        read_pictures(["photo.png", "long.pdf", "photo.png"], 10)


@pytest.mark.parametrize("sources", [[], ["photo.png"]])
def test_dpi_without_a_document_would_be_ignored(folder, sources):
    with pytest.raises(UsageError, match="--dpi"):
        read_pictures(sources, 100)


def test_a_folder_is_asked_for_its_models_size(tmp_path, monkeypatch):
    class Eye:
        image_size = 1540

    class Config:
        vision = Eye

    class Artifact:
        config = Config

    monkeypatch.setattr("pixedge.artifact.open_artifact", lambda folder: Artifact)
    assert [pictures.longest_side(tmp_path, cap) for cap in (None, 512, 4096)] == [1540, 512, 1540]
