"""Ask the same folder in vLLM, in transformers and in pixedge the same 50 questions, and compare.

    python tests/interop/run.py [FOLDER]

FOLDER is an export of the demo, models/demo-pixedge-4bit by default. The two other engines get environments
of their own under .interop/, made on the first run; INTEROP_VLLM and INTEROP_TRANSFORMERS name existing ones
instead. The engines run one after the other. What each of them said lies in .interop/ afterwards; the table
that is printed last says how much of it is equal. The exit code is 1 where check_pixedge.py found a fault.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / ".interop"
QUESTIONS = WORK / "questions.json"
# what the folder says, then with the rounding of the output head, then as pixedge runs by itself
SETTINGS = (("--dtype", "float32", "--dense-head"), ("--dtype", "float32"), ("--dtype", "bfloat16"))


@dataclass(frozen=True)
class Peer:
    """Another engine: its name, the arguments of its check, and the variables it needs on a small CPU."""

    name: str
    arguments: tuple[str, ...]
    variables: dict[str, str]

    @property
    def result(self) -> Path:
        """The file with what it answered."""
        return WORK / f"{self.name}.json"

    def python(self) -> Path:
        """Return its interpreter, from an existing environment or from one that is made here."""
        variable = f"INTEROP_{self.name.upper()}"
        if variable not in os.environ:
            return self._installed()
        folder = Path(os.environ[variable])
        for python in (folder / "bin" / "python", folder / "Scripts" / "python.exe"):
            if python.exists():
                return python
        sys.exit(f"{variable} is {folder}, which is not a virtual environment; give the folder of one")

    def _installed(self) -> Path:
        """Make its environment, unless it is there with the same requirements."""
        folder = WORK / self.name
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        lists = [HERE / f"{self.name}.txt", HERE / f"{self.name}-no-deps.txt"]
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in lists)).hexdigest()
        stamp = folder / "requirements.sha256"
        if stamp.exists() and stamp.read_text() == digest:
            return python
        print(f"making {folder.relative_to(ROOT)}", flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*install, "-r", str(lists[0])])
        run([*install, "--no-deps", "-r", str(lists[1])])
        stamp.write_text(digest)
        return python

    def ask(self, folder: Path) -> None:
        """Write its answers to the questions."""
        script = HERE / f"check_{self.name}.py"
        variables = self.variables | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE / "startup")}
        command = [str(self.python()), str(script), str(folder), str(QUESTIONS), *self.arguments]
        print(f"asking {self.name}", flush=True)
        log = self.result.with_suffix(".log")
        with self.result.open("w") as output, log.open("w") as errors:
            done = subprocess.run(command, stdout=output, stderr=errors, env=os.environ | variables)
        if done.returncode:
            tail = log.read_text(errors="replace").splitlines()[-20:]
            sys.exit("\n".join([*tail, f"{self.name} failed; all it said is in {log.relative_to(ROOT)}"]))


PEERS = (
    Peer(
        "vllm",
        (),
        {
            "VLLM_CPU_INT4_W4A8": "0",  # activations keep 16 bits
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it wants a core for itself
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
        },
    ),
    # a kernel in plain torch, which is not compiled first
    Peer("transformers", ("--backend", "gptq_torch"), {"TORCHDYNAMO_DISABLE": "1"}),
)


def run(command: Sequence[str]) -> None:
    """Run one command, or leave with its exit code."""
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)


def compare(folder: Path, setting: Sequence[str]) -> dict[str, Any]:
    """Let pixedge answer in one setting, and judge what the others said."""
    results = [str(peer.result) for peer in PEERS]
    command = [sys.executable, str(HERE / "check_pixedge.py"), str(folder), str(QUESTIONS), *results]
    print("asking pixedge", *setting, flush=True)
    done = subprocess.run([*command, *setting], stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        sys.exit(done.returncode or 1)
    found: dict[str, Any] = json.loads(done.stdout)
    (WORK / f"pixedge-{found['dtype']}-{found['head']}-head.json").write_text(done.stdout)
    return found


def row(report: dict[str, Any], found: dict[str, Any]) -> str:
    """Give one line of the table."""
    gaps = [difference["gap"] for difference in found["differences"] if difference["gap"] is not None]
    cells = [
        f"{found['engine']}, {found['dtype']}",
        f"{report['dtype']}, {report['head']} head",
        f"{found['prompts_equal']} of {found['questions']}",
        f"{found['answers_equal']} of {found['questions']}",
        f"{max(gaps):.3f}" if gaps else "",
        "passed" if found["passed"] else "FAILED",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run everything, print the table and leave with 1 where a comparison failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "models" / "demo-pixedge-4bit")
    folder = parser.parse_args().folder.resolve()
    WORK.mkdir(exist_ok=True)
    run([sys.executable, str(HERE / "make_questions.py"), str(folder), str(QUESTIONS)])
    for peer in PEERS:
        peer.ask(folder)
    reports = [compare(folder, setting) for setting in SETTINGS]

    print("\n| engine | pixedge | equal prompts | equal answers | largest gap | |\n|---|---|---|---|---|---|")
    pairs = [(report, found) for report in reports for found in report["compared"]]
    for report, found in pairs:
        print(row(report, found))
    for report, found in pairs:
        for difference in found["differences"]:
            print(f"{found['engine']}, {report['dtype']}, {report['head']} head: {json.dumps(difference)}")
    print(json.dumps({found["engine"]: found["versions"] for _, found in pairs}))
    sys.exit(0 if all(found["passed"] for _, found in pairs) else 1)


if __name__ == "__main__":
    main()
