"""All checks, each on its own: one that fails, hangs or crashes is a red line and takes no other along.

What needs no library runs in this process. The rest runs in a child, check after check; where one kills the
child, a new child goes on behind it.

    this process ── machine, packages ── child: libraries, kernels, models ──┬── findings
                                         died in a check? red, next child ───┘
"""

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from pixedge.doctor import machine, packages
from pixedge.doctor.finding import Finding, Subject, red
from pixedge.doctor.nvml import NvmlError, read_driver
from pixedge.own_process import start_module

Check = Callable[[Subject], Iterator[Finding]]

_LIGHT: dict[str, Check] = {
    "python": machine.check_python,
    "packages": packages.check_requirements,
    "extras": packages.check_extras,
    "onnxruntime package": packages.check_runtimes,
    "cpu": machine.check_cpu,
    "gpu": machine.check_cards,
    "compiler": machine.check_compiler,
    "disk": machine.check_disk,
}
# By module and function, imported in the child alone; with the seconds that each may take.
_HEAVY: dict[str, tuple[str, str, float]] = {
    "torch": ("libraries", "check_torch", 120),
    "memory": ("libraries", "check_memory", 60),
    "triton": ("libraries", "check_triton", 60),
    "onnxruntime": ("libraries", "check_onnxruntime", 120),
    "provider": ("libraries", "check_provider", 60),
    "cpu kernels": ("libraries", "check_kernels", 60),
    "model": ("models", "check_models", 1800),
    "cpu kernels against references": ("cpu_proofs", "check_cpu_kernels", 120),
    "gpu kernels against references": ("gpu_proofs", "check_gpu_kernels", 300),
    "answer": ("models", "check_answer", 1800),
}
_PROOFS = ("cpu kernels against references", "gpu kernels against references", "answer")


def examine(
    device: str = "auto",
    model: Path | None = None,
    prove: bool = True,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Iterator[Finding]:
    """Yield what each check found, in their order; progress is told each check's name as it begins.

    device, model, prove: as Subject has them. Raises nothing but KeyboardInterrupt.
    """
    subject = Subject(device, model, _cards(), prove)
    heavy = [name for name in _HEAVY if prove or name not in _PROOFS]
    total = len(_LIGHT) + len(heavy)
    for done, (name, check) in enumerate(_LIGHT.items()):
        progress(name, done, total)
        yield from run(name, check, subject)
    done = len(_LIGHT)
    while heavy:
        progress(heavy[0], done, total)
        for name, finding in _child(subject, tuple(heavy)):
            if finding is not None:
                yield finding
                continue
            done += 1  # that check has ended
            heavy.remove(name)
            if heavy:
                progress(heavy[0], done, total)


def run(name: str, check: Check, subject: Subject) -> Iterator[Finding]:
    """Run one check; whatever it raises is a red finding."""
    try:
        yield from check(subject)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield red(name, f"could not be checked ({text})", "see the red lines above; mend those first")


def serve(task: str, out: IO[str]) -> None:
    """Do a child's work: run the checks of a task, and write each finding as it comes."""
    values: dict[str, Any] = json.loads(task)
    model = values["model"]
    subject = Subject(
        values["device"], Path(model) if model else None, tuple(values["cards"]), values["prove"]
    )

    def say(value: dict[str, Any]) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    for name in values["checks"]:
        module, function, _ = _HEAVY[name]
        say({"begins": name})

        def check(subject: Subject, module: str = module, function: str = function) -> Iterator[Finding]:
            yield from getattr(import_module(f"pixedge.doctor.{module}"), function)(subject)

        for finding in run(name, check, subject):
            say({"finding": asdict(finding)})
        say({"ends": name})


def _child(subject: Subject, names: Sequence[str]) -> Iterator[tuple[str, Finding | None]]:
    """Run checks in a child; yield each finding with its check's name, and None where a check has ended.

    Where the child dies, the check that killed it ends with a red finding, and so does the iteration.
    """
    task = {
        "device": subject.device,
        "model": None if subject.model is None else str(subject.model),
        "cards": subject.cards,
        "prove": subject.prove,
        "checks": list(names),
    }
    current = names[0]
    with (
        tempfile.TemporaryFile() as words,  # what libraries print; they may print more than a pipe holds
        start_module(
            "pixedge.doctor", json.dumps(task), stdout=subprocess.PIPE, stderr=words, text=True
        ) as child,
    ):
        assert child.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(_HEAVY[current][2], stop)
        timer.start()
        try:
            for line in child.stdout:
                said = json.loads(line)
                if "begins" in said:
                    current = said["begins"]
                    timer.cancel()
                    timer = threading.Timer(_HEAVY[current][2], stop)
                    timer.start()
                elif "finding" in said:
                    yield current, Finding(**said["finding"])
                else:
                    yield current, None
                    if said["ends"] == names[-1]:
                        return
        finally:
            timer.cancel()
            child.kill()
        child.wait()
        words.seek(0)
        yield current, _death(current, child.returncode, late.is_set(), words.read())
        yield current, None


def _death(name: str, code: int, late: bool, words: bytes) -> Finding:
    """Tell how a check ended its process."""
    last = words.decode("utf-8", errors="replace").strip().rpartition("\n")[2].strip()[:200]
    said = f": {last}" if last else ""
    if late:
        return red(
            name, f"took more than {_HEAVY[name][2]:.0f} s and was stopped", "see the lines above; restart"
        )
    if code < 0:
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        killed = "killed, perhaps for want of memory" if how == "SIGKILL" else f"crashed with {how}"
        return red(
            name, f"{killed}{said}", "install the package of this line again: pip install --force-reinstall"
        )
    return red(name, f"ended its process with code {code}{said}", "install pixedge and its packages again")


def _cards() -> tuple[str, ...]:
    try:
        driver = read_driver()
    except (NvmlError, AttributeError, OSError):
        return ()
    return () if driver is None else tuple(card.name for card in driver.cards)
