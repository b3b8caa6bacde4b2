"""Processes of pixedge's own: what they import, and what is said where none can be started."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixedge import own_process
from pixedge.errors import CapacityError
from pixedge.image import ImageLimits, read_image
from pixedge.picture_process import PROCESSES, Budget, PictureProcesses, ProcessEndedError

# One module that each process imports first, or near to it.
NAMES = ("numpy", "PIL", "cv2", "llguidance", "pypdfium2", "torch", "json", "random", "struct", "pixedge")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "module", ["pixedge.picture_decoder", "pixedge.page_renderer", "pixedge.format_probe", "pixedge.doctor"]
)
def test_the_working_directory_is_not_imported_from(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A numpy.py in the folder of somebody's pictures was run by the process that decoded them."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("open('was_run', 'a').write(__name__ + '\\n')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in a notebook, which imports from there itself
    task = json.dumps({"bytes": 0, "checks": [], "device": "cpu", "model": None, "cards": [], "prove": False})
    pipe = subprocess.PIPE
    process = own_process.start_module(module, task, stdin=pipe, stdout=pipe, stderr=pipe)
    process.communicate(timeout=60)
    assert not (tmp_path / "was_run").exists(), (tmp_path / "was_run").read_text()


def test_no_other_module_starts_python_by_itself() -> None:
    package = Path(own_process.__file__).parent
    found = {path.name for path in package.rglob("*.py") if "sys.executable," in path.read_text()}
    assert found == {"own_process.py"}


def test_the_search_path_is_the_starting_process_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order: a package beside pixedge does not stand before the standard library."""
    (tmp_path / "tell_path.py").write_text("import json, sys; print(json.dumps(sys.path))")
    ours = [*(place for place in sys.path if os.path.isabs(place)), str(tmp_path)]
    monkeypatch.setattr(sys, "path", ours)
    out, _ = own_process.start_module("tell_path", stdout=subprocess.PIPE).communicate(timeout=60)
    expected = list(dict.fromkeys(ours))
    assert json.loads(out)[: len(expected)] == expected


def test_a_system_without_room_for_a_process_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(own_process.subprocess, "Popen", full)
    with pytest.raises(CapacityError, match="cannot be started \\(Resource temporarily unavailable\\); end"):
        PictureProcesses(1).ask({}, b"", 1)


def test_a_process_that_was_killed_while_idle_costs_no_picture() -> None:
    """The next good picture was refused, as one that crashes the library."""
    read_image(picture(), "it.png", ImageLimits())
    for process in PROCESSES._idle:
        process.kill()
        process.wait()
    assert read_image(picture(), "it.png", ImageLimits()).size == (40, 30)


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="no such signal")
def test_the_time_limit_holds_where_the_program_ignores_its_signal() -> None:
    """A process inherits which signals are ignored and blocked, as profilers and servers leave them."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=1)
    task = {"name": "it", "limits": asdict(ImageLimits()), "fit": None}
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    pool = PictureProcesses(1, Budget(seconds_a_pixel=0.0, least_seconds=0.001))
    try:
        with pytest.raises(ProcessEndedError) as caught:
            pool.ask(task, buffer.getvalue(), 1)
        assert caught.value.over_time
    finally:
        pool.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGPROF, before)
