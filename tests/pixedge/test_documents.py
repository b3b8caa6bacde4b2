"""PDF documents: which pages, how large, and what happens to files that are no good."""

import dataclasses
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixedge import documents, page_renderer
from pixedge.documents import PageScale, choose_pages, read_document, split_pages
from pixedge.errors import ImageError, UsageError
from pixedge.image import ImageLimits, read_image
from tests import pdf_files

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE = (255, 255, 255)
LIMITS = ImageLimits()
SCALE = PageScale(longest=128)


THREE = pdf_files.coloured((1, 0, 0), (0, 1, 0), (0, 0, 1))


def read(data, pages=None, limits=LIMITS, scale=SCALE):
    """Render in this process, where no start of another one is waited for."""
    return list(page_renderer.render_pages(data, "x.pdf", pages, scale, limits))


def colours(pictures):
    return [picture.getpixel((5, 5)) for picture in pictures]


# --- pages --------------------------------------------------------------------------------------------------


def test_pages_come_in_order_over_white_from_another_process():
    pictures = list(read_document(THREE, "x.pdf", LIMITS, SCALE))
    assert colours(pictures) == [RED, GREEN, BLUE]
    assert [(picture.size, picture.mode) for picture in pictures] == [((128, 64), "RGB")] * 3
    assert pictures[0].getpixel((120, 5)) == WHITE  # the right half is bare paper


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ("1", [RED]),
        ("2-3", [GREEN, BLUE]),
        ("3,1-2", [BLUE, RED, GREEN]),
        (" 2 , 2", [GREEN, GREEN]),
        ("2-", [GREEN, BLUE]),
        ("-2", [RED, GREEN]),
    ],
)
def test_chosen_pages_come_in_the_order_given(pages, expected):
    assert colours(read(THREE, pages)) == expected


@pytest.mark.parametrize(
    ("pages", "kind", "words"),
    [
        ("", UsageError, "does not name pages"),
        ("-", UsageError, "does not name pages"),
        ("a", UsageError, "does not name pages"),
        ("1;2", UsageError, "does not name pages"),
        ("1234567890", UsageError, "does not name pages"),
        ("1--3", UsageError, "does not name pages"),
        ("0", UsageError, "pages count from 1"),
        ("3-2", UsageError, "counts backwards"),
        ("4", ImageError, "has 3 pages, so it has no page 4"),
        ("2-7", ImageError, "no page 7"),
        ("9-", ImageError, "no page 9"),
        ("999999999", ImageError, "no page 999,999,999"),
    ],
)
def test_pages_that_are_not_there_are_a_sentence(pages, kind, words):
    with pytest.raises(kind, match=words) as error:
        choose_pages("x.pdf", 3, pages, 64)
    assert "x.pdf" in str(error.value)


@given(
    st.integers(1, 40), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4)
)
def test_ranges_mean_what_they_say(count, ranges):
    ranges = [(min(pair), max(pair)) for pair in ranges]
    text = ",".join(f"{first}-{last}" for first, last in ranges)
    expected = [number for first, last in ranges for number in range(first, last + 1)]
    if max(expected) <= count:
        assert choose_pages("x.pdf", count, text, 1000) == expected
    else:
        with pytest.raises(ImageError, match="no page"):
            choose_pages("x.pdf", count, text, 1000)


def test_only_a_pdf_name_with_brackets_behind_it_names_pages():
    assert split_pages("a/report.PDF[2-5]") == ("a/report.PDF", "2-5")
    assert split_pages("*.pdf[1]") == ("*.pdf", "1")
    assert split_pages("https://a.example/b.pdf[3]") == ("https://a.example/b.pdf", "3")
    for name in ("page[1-3].png", "scan[12]", "report.pdf", ".pdf[1]", "[1]", "a.pdf[1]b"):
        assert split_pages(name) == (name, None)


# --- size ---------------------------------------------------------------------------------------------------


def test_a_page_fills_the_size_that_the_model_takes():
    tall = pdf_files.pages(b"", size=(595, 842))  # A4
    assert [read(tall, scale=PageScale(longest))[0].size for longest in (1024, 64)] == [(724, 1024), (45, 64)]


def test_dpi_renders_smaller_pages_smaller_and_reduces_larger_ones():
    one = pdf_files.coloured((1, 0, 0))  # 200 x 100 points
    assert read(one, scale=PageScale(1024, dpi=72))[0].size == (200, 100)
    assert read(one, scale=PageScale(1024, dpi=36))[0].size == (100, 50)
    assert read(one, scale=PageScale(1024, dpi=720))[0].size == (1024, 512)


def test_the_pixel_limit_holds_before_a_page_is_rendered():
    limits = dataclasses.replace(LIMITS, max_pixels=1_000_000)
    with pytest.raises(ImageError, match=r"page 1 of x.pdf would have 1,125,000 pixels .* lower --dpi"):
        read(THREE, limits=limits, scale=PageScale(128, dpi=540))


def test_turned_and_odd_pages():
    turned = pdf_files.pages(b"1 0 0 rg 0 0 100 100 re f", entries=b"/Rotate 90")
    picture = read(turned)[0]
    assert picture.size == (64, 128)
    assert (picture.getpixel((5, 5)), picture.getpixel((5, 120))) == (RED, WHITE)
    thin = pdf_files.pages(b"", size=(14400, 1))
    assert read(thin)[0].size == (128, 1)


def test_what_somebody_filled_into_a_form_is_drawn():
    appearance = pdf_files.stream(
        b"0 0 1 rg 0 0 200 100 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 200 100]"
    )
    form = pdf_files.pdf(
        b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [4 0 R] >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Annots [4 0 R] >>",
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (b) /Rect [0 0 200 100] /F 4 /P 3 0 R"
        b" /AP << /N 5 0 R >> >>",
        appearance,
    )
    assert max(colours(read(form))[0][:2]) < 255  # a highlight may lie over it


# --- files that are no good ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"%PDF-1.7\nrubbish", "cannot be opened as PDF"),
        (THREE[: len(THREE) // 3], "cannot be opened as PDF"),
        (pdf_files.pages(), "without pages"),
        (pdf_files.encrypted(b"secret"), "encrypted and opens only with a password"),
        (
            pdf_files.coloured(*[(1, 0, 0)] * 1000),
            r"1,000 pages and the limit is 64; name fewer, as in x.pdf\[",
        ),
    ],
)
def test_bad_documents_are_a_sentence(data, words):
    with pytest.raises(ImageError, match=words) as error:
        list(read_document(data, "x.pdf", LIMITS, SCALE))
    assert str(error.value).startswith("x.pdf")


def test_a_document_that_only_asks_for_leave_to_print_opens():
    assert len(read(pdf_files.encrypted(b""))) == 1


def test_some_of_a_thousand_pages():
    thousand = pdf_files.coloured(*[(1, 0, 0)] * 999, (0, 0, 1))
    assert colours(read(thousand, "999-")) == [RED, BLUE]


def test_a_file_over_the_limit_is_not_opened(tmp_path):
    path = pdf_files.write(tmp_path / "x.pdf", THREE)
    limits = dataclasses.replace(LIMITS, max_bytes=100)
    for source in (THREE, path):
        with pytest.raises(ImageError, match="the limit is 100"):
            next(read_document(source, "x.pdf", limits, SCALE))


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(ImageError, match=r"pip install 'pixedge\[pdf\]'"):
        next(read_document(THREE, "x.pdf", LIMITS, SCALE))


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "import os; os.abort()"])
def test_a_library_that_hangs_or_crashes_is_a_sentence(monkeypatch, program):
    """The child is replaced by one that does not come back: what a hostile document makes of pdfium."""
    start = subprocess.Popen
    monkeypatch.setattr(
        documents.subprocess,
        "Popen",
        lambda command, **options: start([sys.executable, "-c", program], **options),
    )
    words = "more than 0.5 s for a page" if "sleep" in program else "crashed or ran out of memory"
    with pytest.raises(ImageError, match=words):
        list(read_document(THREE * 1000, "x.pdf", LIMITS, SCALE, seconds=0.5))
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)


def test_forms_nested_in_forms_come_to_an_end():
    """Ten forms that each draw the next one ten times: 10**8 objects, which pdfium collects for hours."""
    levels = 8
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R"
        b" /Resources << /XObject << /A 5 0 R >> >> >>",
        pdf_files.stream(b"/A Do " * 10),
    ]
    for level in range(levels):
        inner = b"/Resources << /XObject << /A %d 0 R >> >>" % (6 + level)
        content = b"/A Do " * 10 if level < levels - 1 else b"0 0 1 1 re f"
        objects.append(pdf_files.stream(content, b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] %s" % inner))
    with pytest.raises(ImageError, match=r"more than 1 s for a page|ran out of memory"):
        list(read_document(pdf_files.pdf(*objects), "x.pdf", LIMITS, SCALE, seconds=1.0))


def test_a_reader_that_leaves_early_leaves_no_process_behind(monkeypatch):
    started = []
    start = subprocess.Popen

    def popen(*arguments, **options):
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(documents.subprocess, "Popen", popen)
    pages = read_document(THREE, "x.pdf", LIMITS, SCALE)
    assert next(pages).size == (128, 64)
    pages.close()
    assert [process.poll() is not None for process in started] == [True]


@settings(max_examples=60)
@given(st.data())
def test_damaged_documents_are_sentences_or_pictures(data):
    damaged = bytearray(THREE)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(9, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pictures = read(bytes(damaged))
    except (ImageError, UsageError):
        return
    assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in pictures)


def test_the_door_for_pictures_says_what_a_pdf_is():
    with pytest.raises(ImageError, match=r"x\.pdf is a PDF"):
        read_image(THREE, "x.pdf", LIMITS)
