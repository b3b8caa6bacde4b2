"""Nothing leaves the machine, and nothing is left behind in an empty home.

Processes run as a user's do, none of them with the variables that this test run has set for itself. Wheels of
ONNX Runtime send telemetry since 1.29: importing one wrote a device id and a queue of events below ~/.cache,
and the name of a host was looked up 9 s later, by native code that no patch of Python's sockets sees.
"""

import ast
import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.exported_demo import PICTURES, ROOT
from tests.network_watch import NetworkWatch, needs_watch
from tests.pdf_files import pages
from tests.serving import CHAT, Process, ask
from tests.small_exports import write_checkpoint

pytestmark = needs_watch

STATE = "home/.local/state/pixedge/last_export.json"
PICTURE = PICTURES / "shapes.png"


class Home:
    """An empty home and an empty folder for temporary files, with a watch over what runs there."""

    def __init__(self, base: Path) -> None:
        self.folder, self.temporary = base / "home", base / "temporary"
        for folder in (self.folder, self.temporary):
            folder.mkdir()
        self.watch = NetworkWatch(base)
        self.variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")]),
            "HOME": str(self.folder),
            "TMPDIR": str(self.temporary),
            **self.watch.variables,
        }

    def run(self, *command: object, text: str = "", **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT, env=self.variables | variables, input=text, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def left(self) -> list[str]:
        """List all files, whoever wrote them."""
        files = (*self.folder.rglob("*"), *self.temporary.rglob("*"))
        return sorted(str(file.relative_to(self.folder.parent)) for file in files if file.is_file())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home in which a small checkpoint was exported."""
    base = tmp_path_factory.mktemp("nothing_leaves")
    home = Home(base)
    source, out = write_checkpoint(base / "small"), base / "small-pixedge-4bit"
    options = ("--out", out, "--method", "rtn", "--group-size", 32, "--samples", 8, "--threads", 1)
    home.run("-m", "pixedge", "export", source, *options, "--quiet")
    assert (out / "pixedge.json").is_file()
    return home


def test_export_leaves_its_state_and_no_more(home: Home) -> None:
    assert home.left() == [STATE]
    assert home.watch.seen() == []


LOAD = (
    "import pixedge, pixedge.last_export; pixedge.load(pixedge.last_export.read_last_export(), device='cpu')"
)
RUN = ("-m", "pixedge", "run", "--image", PICTURE, "--max-tokens", 2, "--json", "What is this?")


@pytest.mark.parametrize("command", [("-c", LOAD), RUN, ("-c", "import pixedge_export.vision")])
def test_nothing_is_left_behind_and_nothing_is_sent(home: Home, command: tuple[object, ...]) -> None:
    home.run(*command)
    assert home.left() == [STATE]
    assert home.watch.seen() == []


def serve(home: Home, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a server, leave it alone for some seconds, and end it."""
    for name in list(os.environ):
        if name.startswith(("XDG_", "ORT_", "HF_")):
            monkeypatch.delenv(name)
    picture = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    body = ask("What is this?", picture, max_tokens=2) | {"model": "small"}
    with Process(home.folder.parent, **home.variables, XDG_STATE_HOME="") as server:
        for path in ("/", "/metrics", "/v1/models"):
            assert httpx.get(server.url + path).status_code == 200
        assert httpx.post(server.url + CHAT, json=body, timeout=60).status_code == 200
        time.sleep(seconds)
        assert server.end() == 0
    assert home.left() == [STATE]
    assert home.watch.seen() == []


def test_a_server_opens_no_address(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(home, 1, monkeypatch)


@pytest.mark.slow
def test_a_server_opens_no_address_in_20_seconds(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(home, 20, monkeypatch)


@pytest.mark.slow
def test_nor_do_the_other_commands_and_their_child_processes(home: Home, tmp_path: Path) -> None:
    """Each waits for 12 s at its end: ONNX Runtime looks its host up 9 s after it was imported."""
    document = tmp_path / "page.pdf"
    document.write_bytes(pages(b"0 0 1 rg 0 0 50 50 re f"))
    late = "import atexit, sys, time; from pixedge.cli import main; atexit.register(time.sleep, 12); "
    commands = [
        ("batch", PICTURE, document, "--prompt", "What?", "--out", tmp_path / "answers", "--max-tokens", 2),
        ("profile", "--quiet"),
        ("count", "--image", PICTURE, "What?"),
        ("chat", "--max-tokens", 2),
        ("plan", "pixtral-12b"),
        ("report",),
        ("verify", read_state(home)),
        ("doctor", "--model", read_state(home)),
    ]
    for command in commands:
        home.run("-c", f"{late} main({[*map(str, command)]!r})", text="What is this?\n")
        assert home.left() == [STATE], command
        assert home.watch.seen() == [], command


def read_state(home: Home) -> str:
    return json.loads((home.folder.parent / STATE).read_text())["folder"]


BARE = "import onnxruntime"
OURS = "import pixedge.vision"


def test_who_sets_the_variable_otherwise_keeps_his_word(tmp_path: Path) -> None:
    """What ONNX Runtime leaves in a home by itself, it leaves then; the test above would have seen it."""
    left = {}
    for name, code in (("bare", BARE), ("ours", OURS), ("off", OURS)):
        (tmp_path / name).mkdir()
        home = Home(tmp_path / name)
        home.run("-c", code, ORT_DISABLE_TELEMETRY="1" if name == "off" else "0")
        left[name] = home.left()
    assert left["ours"] == left["bare"]
    assert left["off"] == []


@pytest.mark.parametrize(
    ("value", "off"), [(None, True), ("1", True), ("true", True), ("0", False), ("no", False), ("", False)]
)
def test_the_api_is_told_what_the_variable_says(
    home: Home, tmp_path: Path, value: str | None, off: bool
) -> None:
    """For builds on Windows that do not read it, and for programs that import ONNX Runtime first."""
    code = (
        "import onnxruntime; onnxruntime.disable_telemetry_events = lambda: print('off'); "
        "import pixedge.onnx_runtime, os; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    variables = {"HF_HUB_DISABLE_TELEMETRY": "0", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    if value is not None:
        variables["ORT_DISABLE_TELEMETRY"] = value
    said = home.run("-c", code, **variables)
    assert said.split() == ["off", "0"] if off else ["0"]


@pytest.mark.slow
def test_the_watch_sees_what_native_code_looks_up(tmp_path: Path) -> None:
    """Without this, the tests above would pass with a watch that sees nothing."""
    home = Home(tmp_path)
    code = "import onnxruntime, time; time.sleep(12)"
    home.run("-c", code, ORT_DISABLE_TELEMETRY="0")
    if not home.left():
        pytest.skip("this build of ONNX Runtime sends no telemetry")
    assert "looks up mobile.events.data.microsoft.com" in home.watch.seen()


def test_the_watch_sees_and_stops_connections(tmp_path: Path) -> None:
    home = Home(tmp_path)
    code = (
        "import ctypes, socket\n"
        "for host in ('192.0.2.1', '2001:db8::1', 'example.invalid'):\n"
        "    try: socket.create_connection((host, 80), 0.1)\n"
        "    except OSError: pass\n"
        "socket.socket(type=socket.SOCK_DGRAM).bind(('127.0.0.1', 0))\n"
        "try: socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.2', 53))\n"
        "except OSError: pass\n"
        "ctypes.CDLL(None).gethostbyname(b'example.org')\n"
    )
    home.run("-c", code)
    assert home.watch.seen() == [
        "connects to 192.0.2.1",
        "connects to 2001:db8::1",
        "looks up example.invalid",
        "sends to 192.0.2.2",
        "looks up example.org",
    ]


def test_onnxruntime_is_imported_in_one_place() -> None:
    """So that no process of pixedge imports it before telemetry is off."""
    folders = ("pixedge", "export", "benchmarks", "docs", "models", "tests/interop")
    found = {
        str(file.relative_to(ROOT))
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if any(name.split(".")[0] == "onnxruntime" for name in imported(node))
    }
    assert found == {"pixedge/onnx_runtime.py"}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""] if not node.level else []
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
