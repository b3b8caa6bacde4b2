"""The demo, exported once for all tests that ask it something.

PIXEDGE_DEMO names another checkpoint to test in its place, one that was trained again for example.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path(os.environ.get("PIXEDGE_DEMO", ROOT / "models" / "demo"))
PICTURES = ROOT / "models" / "demo" / "pictures"
CALIBRATION = ROOT / "models" / "demo" / "calibration"


def environment(base: Path) -> dict[str, str]:
    """Give an environment whose last export is kept below ``base``, and in which pixedge is found."""
    paths = [str(ROOT), str(ROOT / "export"), *filter(None, [os.environ.get("PYTHONPATH")])]
    state = str(base / "state")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_STATE_HOME": state,
        "LOCALAPPDATA": state,
        "PIXEDGE_MODEL": "",
    }


def pixedge(base: Path, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the pixedge command in the repository's root."""
    command = [sys.executable, "-m", "pixedge", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(base), capture_output=True, text=True, timeout=900, **options
    )


def exported_demo(base: Path) -> Path:
    """Export the demo with GPTQ, as `make run` does, into a folder below ``base``; once, even if it fails."""
    folder, failure = _export(base)
    assert not failure, failure
    return folder


@functools.cache
def _export(base: Path) -> tuple[Path, str]:
    out = base / "demo-pixedge-4bit"
    missing = [name for name in ("params.json", "consolidated.safetensors") if not (DEMO / name).is_file()]
    if missing:
        return out, f"{DEMO} has no {' and no '.join(missing)}; train it: python models/demo/train.py"
    try:
        # on the CPU wherever it runs: the same bytes for every test
        done = pixedge(base, "export", DEMO, "--out", out, "--calibration", CALIBRATION, "--device", "cpu")
    except subprocess.TimeoutExpired as error:
        return out, str(error)
    return out, "" if done.returncode == 0 else done.stderr
