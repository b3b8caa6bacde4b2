"""The profile command on the demo: its object, its files, its refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from pixedge.cli import main
from pixedge.profile.record import FORMAT
from tests.exported_demo import PICTURES, ROOT, environment, exported_demo
from tests.pixedge.profile.made_up import made_up
from tests.pixedge.profile.traces import check_trace

FEW = ["--prompt", 40, "--depth", 0, "--depth", 70, "--batch", 2, "--repeats", 2, "--device", "cpu"]
NAMES = ["load", "read 512", "resize 512", "img64", "pp40", "ttft img64", "tg128", "tg128 @ d70", "tg32 b2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return exported_demo(tmp_path_factory.getbasetemp())


def profile(*arguments, **options):
    return CliRunner().invoke(main, ["profile", *map(str, arguments)], **options)


@pytest.fixture(scope="module")
def measured(demo, tmp_path_factory):
    """Profile the demo once: the object, and the folder with the files."""
    folder = tmp_path_factory.mktemp("profile")
    files = ["--html", folder / "p.html", "--trace", folder / "t.json"]
    rest = ["--side", 64, "--requests", 3, "--concurrency", 2, "--json"]
    done = profile("--model", demo, *FEW, *files, *rest)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), folder, done


def keys(found, expected, where="profile"):
    """Compare the keys of objects inside objects; lists by their first element."""
    if isinstance(expected, dict) and expected:
        assert found.keys() == expected.keys(), where
        for key in expected:
            keys(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list) and expected and found:
        keys(found[0], expected[0], f"{where}[]")


def test_the_object(measured):
    found, _, _ = measured
    expected = made_up()
    for part in ("decoder", "vision"):
        expected["model"][part] = found["model"][part]
    expected["timeline"] = []
    keys(found, expected)
    assert found["format"] == FORMAT
    assert [row["name"] for row in found["rows"]] == NAMES and found["skipped"] == []
    model = found["model"]
    assert (model["layers"], model["whole_layers"], model["synthetic"]) == (4, 4, False)
    assert model["cache_tokens"] == 4096 and model["kv_bits"] == 8
    assert found["limits"]["read_bytes_per_second"] > 1e8


def test_rows_have_times_and_limits(measured):
    rows = {row["name"]: row for row in measured[0]["rows"]}
    for row in rows.values():
        assert row["seconds"] > 0 and len(row["runs"]) == (1 if row["name"] == "load" else 2)
        assert row["reckoned_seconds"] is row["reckoned_rate"] is None
        assert (row["limit_seconds"] is None) == (row["stage"] in ("load", "read", "resize"))
    assert rows["pp40"]["rate"] == pytest.approx(40 / rows["pp40"]["seconds"], rel=1e-2)
    assert rows["tg32 b2"]["rate"] == pytest.approx(64 / rows["tg32 b2"]["seconds"], rel=1e-2)
    # keys and values of 70 more tokens must be read, and nothing else differs
    assert rows["tg128 @ d70"]["limit_seconds"] > rows["tg128"]["limit_seconds"]
    assert (rows["img64"]["width"], rows["img64"]["height"]) == (64, 64)


def test_memory_is_told_for_each_phase_beside_the_plan(measured):
    memory = measured[0]["memory"]
    phases = {phase["phase"]: phase for phase in memory["phases"]}
    wanted = ["start", "load", "pictures", "encode", "prefill", "first token", "decode", "several questions"]
    assert list(phases) == wanted
    assert memory["plan"]["workload"]["context"] == 4096
    assert phases["load"]["planned"] > phases["start"]["planned"]
    if sys.platform == "linux":
        assert all(phase["rss"] > 50e6 for phase in phases.values())


def test_serving_figures(measured):
    serving = measured[0]["serving"]
    assert (serving["completed"], serving["concurrency"]) == (3, 2)
    assert serving["total_output_tokens"] == 3 * 32
    assert 0 < serving["median_ttft_ms"] <= serving["p99_ttft_ms"] < serving["p99_e2el_ms"]


def test_the_timeline_goes_from_the_picture_to_the_last_token(measured):
    spans = measured[0]["timeline"]
    first = {span["name"]: span for span in reversed(spans)}
    order = ["read", "resize and tokenise", "encode", "prefill", "decode"]
    starts = [first[name]["start"] for name in order]
    assert starts == sorted(starts)
    assert sum(span["name"] == "decode" for span in spans) == 31  # the first token comes with the prompt
    whole = first["question"]["seconds"]
    assert sum(s["seconds"] for s in spans if s["name"] in order) <= whole * 1.001


def test_the_files_were_written(measured):
    found, folder, done = measured
    page = (folder / "p.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and found["model"]["name"] in page
    events = check_trace((folder / "t.json").read_text(encoding="utf-8"))
    names = {event["name"] for event in events}
    assert {*NAMES, "limits", "one question", "several questions", "encode", "step"} - {"load"} <= names
    assert sorted(file.name for file in folder.iterdir()) == ["p.html", "t.json"]
    assert "wrote " in done.stderr


def test_the_page_of_documentation_has_every_key(measured):
    text = (ROOT / "docs" / "profile.md").read_text(encoding="utf-8")
    found = measured[0]
    told = set(re.findall(r"`(\w+)`", text))
    some = [found, found["model"], found["limits"], found["memory"], found["memory"]["phases"][0]]
    for part in (*some, found["rows"][0]):
        assert part.keys() <= told
    metrics = {re.sub(r"^(mean|median|p99)_", "", key) for key in found["serving"]}
    assert metrics <= told | {"concurrency"}


def test_a_table_a_comparison_and_real_pictures(demo, measured, tmp_path):
    before = tmp_path / "before.json"
    before.write_text(json.dumps(measured[0]))
    few = ["--prompt", 40, "--depth", 0, "--batch", 2, "--repeats", 1, "--requests", 0, "--device", "cpu"]
    rest = ["--max-image-size", 96, "--compare", before, "--quiet"]
    done = profile("--model", demo, *few, "--image", PICTURES / "shapes.png", *rest)
    assert done.exit_code == 0 and done.stderr == ""
    for text in ("GB/s", "most memory while", f"compared with {measured[0]['date']}", "limit: products"):
        assert text in done.stdout
    assert "measured only before: read 512, resize 512, img64, ttft img64, tg128 @ d70" in done.stdout
    (new,) = re.findall(r"measured only now: (.+)", done.stdout)
    assert re.fullmatch(r"read [\dx]+, resize [\dx]+, img[\dx]+, ttft img[\dx]+", new.strip())
    # one run tells nothing, and the limits have several
    verdicts = re.findall(r"\d x +(\w[\w ]+\w) *$", done.stdout, re.MULTILINE)
    assert verdicts[2:] == ["not told"] * len(verdicts[2:]) and "not told" not in verdicts[:2]
    assert max(map(len, done.stdout.splitlines())) > 100  # no line is broken where there is no terminal


def test_random_weights_in_a_shape():
    arguments = ["--prompt", 40, "--depth", 0, "--batch", 3, "--side", 64, "--repeats", 1, "--requests", 0]
    done = profile("--synthetic", "demo", "--layers", 1, *arguments, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    model = found["model"]
    assert (model["name"], model["synthetic"]) == ("demo", True)
    assert (model["layers"], model["whole_layers"]) == (1, 4)
    rows = {row["name"]: row for row in found["rows"]}
    for name in ("pp40", "tg128", "tg32 b3", "ttft img64"):
        assert rows[name]["seconds"] <= rows[name]["reckoned_seconds"] <= 4 * rows[name]["seconds"]
    assert rows["img64"]["reckoned_seconds"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--layers", 2], 2, "--layers is for random weights; add --synthetic pixtral-12b"),
        (["--synthetic", "pixtral-13b"], 2, "--synthetic is 'pixtral-13b'; give one of pixtral-12b, demo"),
        (["--synthetic", "demo", "--layers", 5], 2, "--layers is 5, and demo has 4 decoder layers"),
        (["--synthetic", "demo", "--model", "x"], 2, "--synthetic makes a model of its own, and --model"),
        (["--prompt", 0], 2, "0 is too small; give 1 or more"),
        (["--depth", -1], 2, "-1 is too small; give 0 or more"),
        (["--requests", -2], 2, "-2 is too small; give 0 or more"),
        (["--image", PICTURES / "shapes.png", "--side", 64], 2, "--side is for drawn pictures"),
        (["--image", "http://example.org/a.png"], 2, "add --allow-url"),
        (["--image", ROOT / "README.md"], 1, "is not a picture that pixedge can read"),
        (["--image", "none.png"], 1, "none.png"),
        (["--html", "no/such/folder/p.html"], 2, "there is no folder no/such/folder; make it first"),
        (["--compare", "none.json"], 1, "none.json is missing; make it with pixedge profile --json"),
        (["--model", "none"], 1, "none (--model) is not a folder"),
    ],
)
def test_refusals_are_a_sentence_and_come_before_any_work(arguments, code, sentence):
    done = profile(*arguments)
    assert done.exit_code == code
    (line,) = done.stderr.splitlines()
    assert line.startswith("pixedge: ") and sentence in line and done.stdout == ""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_leaves_no_file_behind(demo, tmp_path):
    command = [
        sys.executable,
        "-m",
        "pixedge",
        "profile",
        "--synthetic",
        "demo",
        "--html",
        tmp_path / "p.html",
    ]
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen(
        [*map(str, command), "--trace", str(tmp_path / "t.json"), "--repeats", "99"],
        cwd=ROOT,
        env=environment(tmp_path) | {"TMPDIR": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 240
    while not list(work.glob("pixedge-profile-*/tekken.json")) and time.monotonic() < until:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130 and out == b"", err
    assert b"Traceback" not in err
    assert [file.name for file in tmp_path.iterdir()] == ["work"] and not list(work.glob("pixedge*"))
