"""An export that is killed goes on from its last layer, and gives the bytes that it would have given."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pixedge.artifact import MANIFEST
from pixedge.errors import CapacityError, ExportError
from pixedge_export import pipeline, safetensors_writer
from pixedge_export.calibration import load_samples, split
from pixedge_export.journal import Journal, describe_difference, read_journal
from pixedge_export.layers import LinearError
from pixedge_export.pipeline import Event, Recipe, export
from pixedge_export.vision import ParityRow
from tests.exported_demo import ROOT, environment
from tests.small_exports import RECIPE, SAMPLES, alter_json, write_checkpoint

OPTIONS = {"samples": SAMPLES, "device": "cpu", "threads": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the comparison with torch out, which takes most of a small export's time."""
    monkeypatch.setattr(pipeline, "check_parity", lambda *_: [])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, bytes]:
    """The artifact of an export that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "check_parity", lambda *_: [])
        return contents(export(source, source.parent / "whole", RECIPE, **OPTIONS))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that the manifest names, and the manifest."""
    named = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return {name: (folder / name).read_bytes() for name in (MANIFEST, *named)}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Stop(BaseException):
    """An end that no handler of errors knows."""


def stop_after(n: int, events: list[Event]) -> object:
    def report(event: Event) -> None:
        events.append(event)
        if len(events) == n:
            raise Stop

    return report


# A fresh process for each attempt would spend seconds on imports: one that has them already is forked.
PROGRAM = """
import os, sys
from pathlib import Path
from pixedge_export import pipeline
from tests.small_exports import RECIPE

pipeline.check_parity = lambda *_: []
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        def report(event):
            os.write(1, b"event\\n")  # one write: a kill cannot part the word from its line's end
        pipeline.export(Path(sys.argv[1]), Path(sys.argv[2]), RECIPE, samples=int(sys.argv[3]), device="cpu",
                        threads=1, report=report)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print("end", status, flush=True)
"""


@pytest.fixture
def server(source: Path, tmp_path: Path) -> Iterator[subprocess.Popen]:
    arguments = [str(source), str(tmp_path / "out"), str(SAMPLES)]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_random_points(server: subprocess.Popen, tmp_path: Path, whole: dict[str, bytes]) -> None:
    rng = random.Random(0)
    out, kills, finished = tmp_path / "out", 0, 0
    while kills < 12 or not finished:
        shutil.rmtree(out, ignore_errors=True)
        server.stdin.write("go\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        patience = rng.randint(1, 30)  # of about 70 steps
        while (line := server.stdout.readline()) == "event\n":
            patience -= 1
            if patience == 0:
                os.kill(child, signal.SIGKILL)
        word, status = line.split()
        assert word == "end" and int(status) in (0, signal.SIGKILL)
        kills += int(status) != 0
        finished += int(status) == 0
        if int(status) == 0:
            assert contents(out) == whole
            assert names(tmp_path) == {"out"}
        else:
            assert not out.exists()


@pytest.mark.parametrize("n", [1, 3, 5, 6, 12, 20, 28, 32, 36, 44, 50, 55, 62])
def test_stopped_at_any_step(source: Path, tmp_path: Path, whole: dict[str, bytes], n: int) -> None:
    out, events = tmp_path / "out", []
    with pytest.raises(Stop):
        export(source, out, RECIPE, **OPTIONS, report=stop_after(n, events))
    assert names(tmp_path) <= {".out.partial"}
    journal = read_journal(tmp_path / ".out.partial")
    assert (journal is None) == (not names(tmp_path))
    again: list[Event] = []
    export(source, out, RECIPE, **OPTIONS, report=again.append)
    assert contents(out) == whole and names(tmp_path) == {"out"}
    done = journal.layers if journal and journal.layers else 0
    first = next(event for event in again if event.phase == "layers")
    assert first.done == 7 * done and first.detail == (f"going on behind layer {done} of 2" if done else "")
    phases = {event.phase for event in again}
    assert ("vision" in phases) == (journal is None)
    assert ("encode" in phases) == (journal is None or journal.layers is None)


def stopped(source: Path, out: Path, recipe: Recipe = RECIPE, **options: object) -> Path:
    """Leave an export whose first layer is finished; return what is left."""

    def report(event: Event) -> None:
        if event.phase == "layers" and event.done > 7:
            raise Stop

    with pytest.raises(Stop):
        export(source, out, recipe, **(OPTIONS | options), report=report)
    left = out.with_name(f".{out.name}.partial")
    assert read_journal(left).layers == 1
    return left


@pytest.mark.parametrize(
    ("recipe", "options", "difference"),
    [
        (Recipe(group_size=16), {}, "group_size 32, now 16"),
        (Recipe("rtn", group_size=32), {}, "method gptq, now rtn"),
        (RECIPE, {"samples": SAMPLES + 2}, "calibration"),
    ],
)
def test_what_is_left_of_something_else_is_not_touched(
    source: Path, tmp_path: Path, recipe: Recipe, options: dict, difference: str
) -> None:
    left = stopped(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in left.rglob("*") if path.is_file()}
    with pytest.raises(ExportError) as raised:
        export(source, tmp_path / "out", recipe, **(OPTIONS | options))
    assert str(raised.value).startswith(f"{left} holds an unfinished export of something else ({difference}")
    assert str(raised.value).endswith("; finish that one, or give it up with --force")
    assert {path: path.stat().st_mtime_ns for path in left.rglob("*") if path.is_file()} == before
    export(source, tmp_path / "out", recipe, **(OPTIONS | options), force=True)
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("part", [0, 1], ids=["calibration", "held out"])
def test_other_samples_are_something_else(source: Path, tmp_path: Path, part: int) -> None:
    """The report measures on the held-out samples: a resumed export with others would report half of each."""
    data = tmp_path / "data"
    data.mkdir()
    file, out = data / "calibration.jsonl", tmp_path / "out"

    def write(texts: Sequence[str]) -> None:
        lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in texts]
        file.write_text("\n".join(lines), encoding="utf-8")

    texts = [f"Question {i}?" for i in range(8)]
    write(texts)
    number = int(split(load_samples(data))[part][0].name.partition(":")[2])
    options = OPTIONS | {"samples": None, "calibration": data}
    stopped(source, out, **options)
    write([*texts[: number - 1], "Something else.", *texts[number:]])
    with pytest.raises(ExportError, match=r"something else \(calibration"):
        export(source, out, RECIPE, **options)


def test_another_checkpoint_in_the_same_place_is_something_else(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "small")
    stopped(source, tmp_path / "out")
    os.utime(source / "consolidated.safetensors", (1, 1))
    with pytest.raises(ExportError, match=r"something else \(another source"):
        export(source, tmp_path / "out", RECIPE, **OPTIONS)


def lose_a_shard(left: Path) -> None:
    (left / "artifact" / "model-00003-of-00004.safetensors").unlink()


def cut_a_shard(left: Path) -> None:
    with (left / "artifact" / "model-00003-of-00004.safetensors").open("r+b") as file:
        file.truncate(1000)


def lose_a_stream(left: Path) -> None:
    (left / read_journal(left).streams["calibration"]).unlink()


def spoil_the_journal(left: Path) -> None:
    (left / "journal.json").write_text("{", encoding="utf-8")


def lose_a_key(left: Path) -> None:
    alter_json(left / "journal.json", lambda data: data.pop("errors"))


@pytest.mark.parametrize("damage", [lose_a_shard, cut_a_shard, lose_a_stream, spoil_the_journal, lose_a_key])
def test_what_is_left_damaged_is_done_again(
    source: Path, tmp_path: Path, whole: dict[str, bytes], damage: object
) -> None:
    damage(stopped(source, tmp_path / "out"))
    export(source, tmp_path / "out", RECIPE, **OPTIONS)
    assert contents(tmp_path / "out") == whole and names(tmp_path) == {"out"}


def test_the_seconds_of_all_runs_are_told(source: Path, tmp_path: Path) -> None:
    left = stopped(source, tmp_path / "out")
    alter_json(left / "journal.json", lambda data: data["seconds"].update(layers=1000.0, vision=2000.0))
    out = export(source, tmp_path / "out", RECIPE, **OPTIONS)
    seconds = json.loads((out / "export_report.json").read_text(encoding="utf-8"))["seconds"]
    assert list(seconds) == ["samples", "vision", "encode", "layers", "measure"]
    assert 1000 < seconds["layers"] < 1100 and seconds["vision"] == 2000


@pytest.mark.parametrize("which", range(1, 9))
def test_a_full_disk_loses_nothing_that_was_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], which: int
) -> None:
    """The n-th file that must reach the disk does not."""
    real, seen = safetensors_writer.publish, 0

    def publish(beside: Path, file: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == which:
            raise OSError(28, "No space left on device")
        real(beside, file)

    for module in ("safetensors_writer", "activations", "journal"):
        monkeypatch.setattr(f"pixedge_export.{module}.publish", publish)
    with pytest.raises(CapacityError, match=f"the disk of {tmp_path} is full; free some space"):
        export(source, tmp_path / "out", RECIPE, **OPTIONS)
    assert names(tmp_path) <= {".out.partial"}
    export(source, tmp_path / "out", RECIPE, **OPTIONS)
    assert contents(tmp_path / "out") == whole


def test_a_journal_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"recipe": {"a": 1}}, parity=[ParityRow("g", 16, 32, 1e-7, 1e-4)], layers=2)
    journal.errors.append(LinearError(0, "mlp.up_proj", 0.1234567890123, 1 / 3))
    journal.streams["dense"] = "dense.a"
    journal.save()
    assert read_journal(tmp_path) == journal
    assert names(tmp_path) == {"journal.json"}
    assert read_journal(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({"a": 1}, {"a": 1}, "nothing"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "c 2, now 3"),
        ({"a": [1]}, {"a": [2]}, "another a"),
        ({}, {"a": 2}, "a None, now 2"),
        ({"a": 1, "b": 2}, {"a": 1}, "b 2, now None"),
    ],
)
def test_differences_are_named(there: dict, here: dict, words: str) -> None:
    assert describe_difference(here, there) == words
