"""Amounts of memory, read and written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixedge.byte_size import parse_bytes, write_bytes
from pixedge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("24GiB", 24 << 30),
        ("24 gib", 24 << 30),
        ("24G", 24 << 30),
        ("24GB", 24_000_000_000),
        ("800MB", 800_000_000),
        ("1.5MiB", 3 << 19),
        ("512K", 512 << 10),
        ("1T", 1 << 40),
        ("4096B", 4096),
    ],
)
def test_what_people_write(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    "text", ["", "24", "GiB", "24XB", "-24GiB", "24iB", "1e3GB", "24 G B", "٢٤GB", "nan", "0GiB", "0.1B"]
)
def test_what_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--vram-limit is '.*'"):
        parse_bytes(text, "--vram-limit")


@given(st.integers(1, 1 << 45))
def test_what_is_written_is_read_again(amount: int) -> None:
    assert parse_bytes(write_bytes(amount, 6).replace(",", "")) == pytest.approx(amount, rel=1e-3)
