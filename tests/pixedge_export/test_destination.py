"""An export appears whole or not at all, and an older one stays until then."""

import errno
import shutil
from pathlib import Path

import pytest

from pixedge.artifact import MANIFEST
from pixedge.errors import CapacityError, ExportError
from pixedge_export.destination import destination
from pixedge_export.journal import Journal


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return folder


def write(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)


def make(out: Path, content: str) -> Path:
    out.mkdir(parents=True)
    write(out, content)
    return out


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_block_that_ends_well_is_moved_there(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "new" / "parents" / "out"
    with destination(out, 0, force=False, source=source) as folder:
        write(folder, "new")
        assert folder.parent.parent == out.parent and not out.exists()
    assert (out / MANIFEST).read_text() == "new"
    assert names(out.parent) == {"out"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, source: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), destination(tmp_path / "out", 0, force=False, source=source) as folder:
        write(folder, "half")
        raise error
    assert names(tmp_path) == {"checkpoint"}


def test_what_a_killed_run_left_is_removed(tmp_path: Path, source: Path) -> None:
    make(tmp_path / ".out.partial", "killed")
    with destination(tmp_path / "out", 0, force=False, source=source) as folder:
        assert names(folder) == set()
        write(folder, "new")
    assert names(tmp_path) == {"checkpoint", "out"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_can_go_on_finds_what_it_left(
    tmp_path: Path, source: Path, error: type[BaseException]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(error), destination(out, 0, force=False, source=source) as folder:
        write(folder, "half")
        Journal(folder.parent, {"recipe": 1}).save()
        raise error
    assert names(tmp_path) == {"checkpoint", ".out.partial"}
    with destination(out, 0, force=False, source=source) as folder:
        assert (folder / MANIFEST).read_text() == "half"
        write(folder, "whole")
    assert names(tmp_path) == {"checkpoint", "out"} and names(out) == {MANIFEST}
    assert (out / MANIFEST).read_text() == "whole"


def test_two_exports_do_not_write_to_one_place(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    with destination(out, 0, force=False, source=source) as folder:
        write(folder, "first")
        with (
            pytest.raises(ExportError, match=f"^another export is writing to {out}; wait until it ends"),
            destination(out, 0, force=True, source=source),
        ):
            raise AssertionError
    assert (out / MANIFEST).read_text() == "first"


def test_room_is_counted_with_what_is_there(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), destination(tmp_path / "out", 0, force=False, source=source) as f:
        write(f, "x" * 1000)
        Journal(f.parent, {}).save()
        raise KeyboardInterrupt
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=500))
    with (
        pytest.raises(CapacityError, match=r"has 1\.5 kB free"),
        destination(tmp_path / "out", 1501, force=False, source=source),
    ):
        raise AssertionError
    with destination(tmp_path / "out", 1500, force=False, source=source):
        pass


def test_force_replaces_an_export_at_the_end(tmp_path: Path, source: Path) -> None:
    out = make(tmp_path / "out", "old")
    with destination(out, 0, force=True, source=source) as folder:
        write(folder, "new")
        assert (out / MANIFEST).read_text() == "old"
    assert (out / MANIFEST).read_text() == "new"
    assert names(tmp_path) == {"checkpoint", "out"}


def test_the_old_export_outlives_a_failure(tmp_path: Path, source: Path) -> None:
    out = make(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt), destination(out, 0, force=True, source=source) as folder:
        write(folder, "half")
        raise KeyboardInterrupt
    assert (out / MANIFEST).read_text() == "old"
    assert names(tmp_path) == {"checkpoint", "out"}


@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_an_interrupted_replacement_leaves_one_of_the_two_whole(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    """Three renames: old aside, new there, old to the name of what is being deleted."""
    out = make(tmp_path / "out", "old")
    real, calls = Path.rename, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == interrupted:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), destination(out, 0, force=True, source=source) as folder:
        write(folder, "new")
    assert (out / MANIFEST).read_text() == ("new" if interrupted == 3 else "old")
    monkeypatch.undo()
    with destination(out, 0, force=True, source=source) as folder:
        write(folder, "newer")
    assert (out / MANIFEST).read_text() == "newer"
    assert names(tmp_path) == {"checkpoint", "out"}


def test_a_run_killed_between_the_renames_is_undone(tmp_path: Path, source: Path) -> None:
    make(tmp_path / ".out.old", "old")
    make(tmp_path / ".out.partial", "new")
    with (
        pytest.raises(ExportError, match="already holds an export"),
        destination(tmp_path / "out", 0, force=False, source=source),
    ):
        raise AssertionError
    assert (tmp_path / "out" / MANIFEST).read_text() == "old"


def test_an_empty_folder_may_be_filled(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with destination(out, 0, force=False, source=source) as folder:
        write(folder, "new")
    assert (out / MANIFEST).read_text() == "new"
    assert names(tmp_path) == {"checkpoint", "out"}


def test_a_link_is_followed(tmp_path: Path, source: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    make(disk / "real", "old")
    (tmp_path / "out").symlink_to(disk / "real")
    with destination(tmp_path / "out", 0, force=True, source=source) as folder:
        assert folder.parent.parent == disk
        write(folder, "new")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "out" / MANIFEST).read_text() == "new"


def refusal(out: Path, source: Path, **options: object) -> str:
    before = {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")}
    arguments = {"force": False, "source": source} | options
    with pytest.raises((ExportError, CapacityError)) as raised, destination(out, 0, **arguments):
        raise AssertionError("the block must not begin")
    assert {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")} == before
    return str(raised.value)


def test_what_is_not_an_export_is_never_replaced(tmp_path: Path, source: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("cat")
    file = tmp_path / "file"
    file.write_text("text")
    for out in (photos, file):
        assert refusal(out, source, force=True) == (
            f"{out} exists and is not an exported folder; choose another folder"
        )


def test_an_export_is_replaced_only_with_force(tmp_path: Path, source: Path) -> None:
    out = make(tmp_path / "out", "old")
    assert refusal(out, source) == (
        f"{out} already holds an export; add --force to replace it, or choose another folder"
    )


@pytest.mark.parametrize("below", [".", "export", "a/b", "../checkpoint/x"])
def test_the_checkpoint_is_not_written_into(source: Path, below: str) -> None:
    out = source / below
    assert refusal(out, source, force=True) == (
        f"{out} is the checkpoint's folder {source} or inside it; choose another folder"
    )


def test_an_export_that_holds_what_is_read_is_not_replaced(tmp_path: Path, source: Path) -> None:
    out = make(tmp_path / "out", "old")
    for name in ("checkpoint", "samples"):
        (out / name).mkdir()
    assert refusal(out, out / "checkpoint", force=True).startswith(
        f"{out} would replace {out / 'checkpoint'}"
    )
    message = refusal(out, source, force=True, calibration=out / "samples")
    assert message == f"{out} would replace {out / 'samples'}, which is read; choose another folder"


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("text")
    message = refusal(tmp_path / "file" / "out", source)
    assert message == (
        f"{tmp_path / 'file' / '.out.partial'} cannot be made (Not a directory); choose another folder, or "
        "check the parent"
    )


def test_too_little_room_is_said_before_anything_is_done(tmp_path: Path, source: Path) -> None:
    with (
        pytest.raises(CapacityError, match=r"takes about 1000000 TB .* free; free some space"),
        destination(tmp_path / "out", 10**18, force=False, source=source),
    ):
        raise AssertionError("the block must not begin")
    assert names(tmp_path) == {"checkpoint"}


def test_a_disk_that_fills_up_is_a_sentence(tmp_path: Path, source: Path) -> None:
    with (
        pytest.raises(CapacityError) as raised,
        destination(tmp_path / "out", 0, force=False, source=source),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(raised.value) == f"the disk of {tmp_path} is full; free some space, or choose another folder"
    with pytest.raises(PermissionError), destination(tmp_path / "out", 0, force=False, source=source):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert names(tmp_path) == {"checkpoint"}


def test_the_root_of_a_disk_is_refused_at_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent lies on another disk, so the move at the end of a long export would fail."""
    out = tmp_path / "mount"
    out.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == out)
    assert refusal(out, source) == (
        f"{out} is the root of a disk; choose a folder inside it, such as {out / 'model'}"
    )
