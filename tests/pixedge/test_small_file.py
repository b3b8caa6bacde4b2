"""Files of options that are read whole: named pipes and devices in their place."""

import os
import threading
from pathlib import Path

import pytest

from pixedge import named_pipe
from pixedge.commands.sampling_options import SamplingOptions
from pixedge.commands.serve import _keys
from pixedge.errors import PixedgeError
from pixedge.small_file import read_small_file
from pixedge.transcript import is_transcript, read_transcript

READERS = {
    "schema": lambda file: SamplingOptions(schema=str(file)).params(),
    "grammar": lambda file: SamplingOptions(grammar=str(file)).params(),
    "key": lambda file: _keys(str(file)),
    "load": lambda file: read_transcript(file, lambda name: None),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_that_nobody_writes_into_is_a_sentence(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these options waited for ever, without a word."""
    monkeypatch.setattr(named_pipe, "WRITER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PixedgeError, match="nothing is written into this pipe"):
        READERS[reader](tmp_path / "pipe")
    assert not is_transcript(tmp_path / "pipe")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
@pytest.mark.parametrize("reader", READERS)
def test_a_file_without_end_is_a_sentence(reader: str) -> None:
    """It was read until the memory was full."""
    with pytest.raises(PixedgeError, match="more than 64 MiB"):
        READERS[reader](Path("/dev/zero"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"text" * 50_000))
    writer.start()
    assert read_small_file(tmp_path / "pipe") == b"text" * 50_000
    writer.join()
