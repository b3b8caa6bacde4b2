"""Collect what a machine with a card shows at its first run; one command, up to an hour, ends in an archive.

    python benchmarks/first_run.py                    # or: make first-run
    python benchmarks/first_run.py --model FOLDER     # with a model of your own in place of the demo
    python benchmarks/first_run.py --tiny             # minutes: small shapes, to try this script

Every stage is a process of its own with a time limit: one that fails, hangs or crashes takes no other along.
first-run.tar.gz holds what they printed, clocks of the card once a second, and summary.json. It is below
5 MB, holds no picture, and what names a person's files is replaced (see first_run_words.py). It works from
the checkout without an installation, with whatever versions are there; a missing package is a sentence.
This file needs nothing but Python. Only one stage, torch's own weights aside, writes much: 8.4 GB of random
weights below --scratch, removed at its end.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from first_run_machine import CARD
from first_run_words import Words

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LARGEST_ARCHIVE = 5_000_000
LARGEST_OUTPUT = 400_000
"""Bytes of a stage's words that are kept: its beginning and its end."""

DEMO = ROOT / "models" / "demo"
PICTURE = str(DEMO / "pictures" / "shapes.png")
CLOCKS = (
    "timestamp,index,clocks.sm,clocks.mem,clocks_event_reasons.active,power.draw,temperature.gpu,"
    "utilization.gpu,memory.used,pcie.link.gen.current,pcie.link.width.current"
)


@dataclass(frozen=True)
class Stage:
    """A command of this Python, the seconds it may take, and the modules it cannot do without."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = ()
    in_checkout: bool = False


RUNS = ("torch", "numpy", "safetensors", "mistral_common", "cv2", "PIL", "jsonschema", "click", "onnxruntime")


def stages(model: str, out: str, tiny: bool, vision: tuple[str, ...], vram: str, scratch: str) -> list[Stage]:
    """List the stages. vision: options of a run that says where pictures are encoded."""
    small, run = (("--tiny",) if tiny else ()), ("-m", "pixedge", "run", "--model", model)
    question = (*vision, "--image", PICTURE, "--json", "--max-tokens", "24", "--temperature", "0")
    loads = [
        Stage(
            f"load-{device.replace(':', '-')}",
            (*run, "--device", device, "--json", "--max-tokens", "8", "What is a star?"),
            300,
            RUNS,
        )
        for device in ("auto", "cuda", "cuda:0", "cpu")
    ]
    if vision:  # a run loads the encoder as well
        loads = [Stage(each.name, (*each.arguments, *vision), each.seconds, each.needs) for each in loads]
    gpu = ("--vram-limit", vram, *(("--scratch", scratch) if scratch else ()))
    encoder = str(HERE / "first_run_encoder.py")
    timed = ROOT / "tests" / "pixedge" / "kernels" / "cuda" / "timed.py"
    kernels, tests = ("torch", "triton", CARD), ("-m", "pytest", "-q", "--continue-on-collection-errors")
    return [
        Stage("doctor", ("-m", "pixedge", "doctor", "--json", "--model", model), 1200, ("click",)),
        *loads,
        Stage("answer", (*run, *question, "What colour is the star?"), 300, RUNS),
        Stage("answer-cpu", (*run, "--device", "cpu", *question, "What colour is the star?"), 300, RUNS),
        Stage("placement", (encoder, "placement", model, PICTURE), 300, RUNS),
        Stage("encoder-ranges", (encoder, "ranges", model, PICTURE), 900, RUNS),
        Stage("steps", (str(HERE / "first_run_steps.py"), model, out), 300, RUNS),
        Stage("gpu-tests", (*tests, "-m", "gpu"), 1200, ("pytest", *RUNS, CARD), True),
        Stage("kernels", (str(timed), *small), 900, kernels),
        Stage("gpu", (str(HERE / "gpu.py"), *small, *gpu), 900, (*kernels, "numpy", "safetensors")),
    ]  # fmt: skip


class Collection:
    """What has been found so far, in a folder, in the order it was found."""

    def __init__(self, folder: Path, words: Words, environment: dict[str, str]) -> None:
        """Begin with nothing."""
        self.folder, self.words, self.environment = folder, words, environment
        # Where stages run: a person's folders beside the checkout's are not looked into.
        self.empty = folder.with_name("empty")
        self.empty.mkdir()
        self.summary: list[dict[str, object]] = []
        self.missing: set[str] = set()

    def run(self, stage: Stage) -> int | None:
        """Run a stage and keep its words; return its exit code, None where it was left out or stopped."""
        if lacks := [name for name in stage.needs if name in self.missing]:
            self.note(stage.name, f"left out: needs {', '.join(lacks)}")
            return None
        print(f"{stage.name} ...", end=" ", flush=True)
        start = time.time()
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                [sys.executable, *stage.arguments],
                cwd=ROOT if stage.in_checkout else self.empty,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = child.wait(stage.seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end(child)
            output.seek(0)
            self.write(f"{stage.name}.txt", output.read())
        state = (
            "done"
            if code == 0
            else f"stopped after {stage.seconds:g} s"
            if code is None
            else f"exit code {code}"
        )
        self.note(stage.name, state, start=round(start, 1), seconds=round(time.time() - start, 1))
        return code

    def note(self, name: str, state: str, **facts: object) -> None:
        """Write down how a stage ended."""
        self.summary.append({"stage": name, "state": state, **facts})
        print(state if facts else f"{name}: {state}", flush=True)

    def write(self, name: str, data: bytes) -> None:
        """Keep text without a person's words; where it is long, its beginning and its end."""
        text = self.words.replace(data.decode("utf-8", errors="replace")).encode()
        if len(text) > LARGEST_OUTPUT:
            half = LARGEST_OUTPUT // 2
            text = (
                text[:half] + f"\n... {len(text) - 2 * half:,} bytes left out ...\n".encode() + text[-half:]
            )
        (self.folder / name).write_bytes(text)

    def pack(self, archive: Path) -> None:
        """Write the archive; what is largest is left out where it would be too large."""
        (self.folder / "summary.json").write_text(json.dumps(self.summary, indent=1) + "\n")
        files = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_size)
        unfinished = archive.with_name(f".{archive.name}.unfinished")
        while True:
            with tarfile.open(unfinished, "w:gz") as tar:
                for file in files:
                    tar.add(file, f"first-run/{file.name}", filter=anonymous)
            if unfinished.stat().st_size < LARGEST_ARCHIVE:
                break
            print(f"left out of the archive, too large: {files.pop().name}")
        os.replace(unfinished, archive)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Keep the owner's name out of the archive."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def end(child: subprocess.Popen[bytes]) -> None:
    """End a stage and what it has started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        elif child.poll() is None:
            child.kill()
    child.wait()


@contextlib.contextmanager
def clocks(folder: Path) -> Iterator[None]:
    """Let nvidia-smi write down the card's clocks once a second meanwhile."""
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv", "-l", "1"]
    with (folder / "clocks.csv").open("wb") as file:
        try:
            child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError:
            file.write(b"nvidia-smi is missing\n")
            child = None
        try:
            yield
        finally:
            if child is not None:
                end(child)


def environment(state: Path) -> dict[str, str]:
    """Give the stages this checkout, and keep a person's own last export and other settings out."""
    paths = [str(ROOT), str(ROOT / "export"), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PIXEDGE_MODEL": "", "XDG_STATE_HOME": str(state), "LOCALAPPDATA": str(state)}
    return os.environ | own | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """Run all stages and pack what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="an exported folder (default: the demo, exported first)")
    parser.add_argument("--out", type=Path, default=Path("first-run.tar.gz"), help="the archive")
    parser.add_argument("--scratch", type=Path, help="folder for 8.4 GB of random weights")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script")
    parser.add_argument("--only", nargs="*", help="names of stages, to try some again")
    args = parser.parse_args()
    archive, scratch = args.out.resolve(), str(args.scratch.resolve()) if args.scratch else ""
    with tempfile.TemporaryDirectory(prefix="first-run-") as name:
        folder, state = Path(name) / "found", Path(name) / "state"
        folder.mkdir()
        model = args.model.resolve() if args.model else Path(name) / "demo-pixedge-4bit"
        words = Words(
            {str(model): "MODEL", str(Path(name)): "TEMPORARY", scratch: "SCRATCH", str(ROOT): "CHECKOUT"}
        )
        found = Collection(folder, words, environment(state))
        facts = Path(name) / "facts.json"
        try:
            with clocks(folder):
                found.run(Stage("machine", (str(HERE / "first_run_machine.py"), str(facts)), 120))
                known = json.loads(facts.read_text()) if facts.is_file() else {}
                found.missing = set(known.get("missing", ()))
                if args.only is None or "build" in args.only:
                    found.run(Stage("build", (str(HERE / "first_run_build.py"),), 600))
                if args.model is None:
                    options = (
                        "--out",
                        str(model),
                        "--calibration",
                        str(DEMO / "calibration"),
                        "--device",
                        "cpu",
                    )
                    export = ("-m", "pixedge", "export", str(DEMO), *options)
                    found.run(Stage("export", export, 1800, (*RUNS, "onnx", "onnxscript")))
                vision = () if known.get("encoder_on_cuda") else ("--vision-device", "cpu")
                vram = known.get("vram", "24GiB")
                for stage in stages(str(model), str(folder), args.tiny, vision, vram, scratch):
                    if args.only is None or stage.name in args.only:
                        found.run(stage)
        except KeyboardInterrupt:
            found.note("all", "interrupted")
        found.pack(archive)
    print(f"\n{archive} ({archive.stat().st_size:,} bytes): look into it, then attach it to an issue")


if __name__ == "__main__":
    main()
