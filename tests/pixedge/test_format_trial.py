"""Formats from strangers: whatever they ask for, the process goes on, and no format costs much."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pixedge.format_trial
from pixedge.answer_format import AnswerFormat
from pixedge.constraint import Constraint
from pixedge.errors import PixedgeError, UsageError
from pixedge.format_limits import MAX_LEAST, MAX_MULTIPLE, MAX_OPEN, MAX_RULES, MAX_SCHEMAS, MAX_UNFOLDED
from pixedge.format_probe import MEMORY, SECONDS, find_fault, read_message, write_message
from pixedge.format_trial import FormatTrial, is_small
from tests.constrained_answers import DEMO_TEKKEN, EOS, REAL_TEKKEN, babble, vocabulary
from tests.hostile_formats import hostile_format

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="formats are tried in forks")

MASKS = 12


# Bounds


def chain(rules: int) -> str:
    return "start: r1\n" + "".join(f"r{at}: r{at + 1}\n" for at in range(1, rules)) + f'r{rules}: "a"\n'


def references(count: int) -> str:
    definitions = {
        f"d{at}": {"type": "array", "items": {"$ref": f"#/$defs/d{at + 1}"}} for at in range(count)
    }
    return json.dumps({"$defs": {**definitions, f"d{count}": {"type": "string"}}, "$ref": "#/$defs/d0"})


@pytest.mark.parametrize(
    "kind, text, named",
    [
        # 4,500 rules of 74 KB, and 1,200 references, ended the process: llguidance recurses.
        ("lark", chain(4500), f"{MAX_RULES:,}"),
        ("lark", chain(MAX_RULES), f"{MAX_RULES:,}"),
        ("schema", references(1200), f"{MAX_SCHEMAS:,}"),
        # 106 s and 8.4 GB.
        ("regex", ".*" * 20_000, f"{MAX_OPEN:,}"),
        ("regex", "(a{1000}){1000}", f"{MAX_UNFOLDED:,}"),
        ("regex", "((((a{60}){60}b?){60}|c){60}){60}", f"{MAX_UNFOLDED:,}"),
        ("regex", "(?:a{2}){" + "9" * 5000 + "}", f"{MAX_UNFOLDED:,}"),
        ("lark", 'start: ("a"{1000}){1000}', f"{MAX_UNFOLDED:,}"),
        ("lark", 'start: ("a"~1..1000)~1000', f"{MAX_UNFOLDED:,}"),
        ("lark", "start: /(a{1000}){1000}/", f"{MAX_UNFOLDED:,}"),
        ("lark", f"start: %json {references(1200)}", f"{MAX_SCHEMAS:,}"),
        ("lark", 'start: %json {"multipleOf": 1000003}', f"{MAX_MULTIPLE:,}"),
        ("lark", 'start: "a" | %json {"a":', "line 1"),
        ("schema", '{"type": "string", "pattern": "(a{1000}){1000}"}', "#"),
        ("schema", '{"items": {"patternProperties": {"' + ".*" * 2000 + '": {}}}}', "#/items"),
        ("schema", '{"multipleOf": 1000003}', f"{MAX_MULTIPLE:,}"),
        # Five milliseconds each, and together more than 4 s and 700 MB.
        ("schema", '{"anyOf": [{"multipleOf": 997}, {"multipleOf": 991}]}', "'multipleOf' at #/anyOf/1"),
        ("schema", '{"items": {"multipleOf": 10003e-4}}', "'multipleOf'"),
        ("schema", '{"items": {"minItems": 1e6}}', f"'minItems' at #/items is above {MAX_LEAST:,}"),
        ("schema", json.dumps({"anyOf": [{}] * (MAX_SCHEMAS + 1)}), f"{MAX_SCHEMAS:,}"),
        # What nobody checked, reached by a reference.
        ("schema", '{"default": {"not": {}}, "$ref": "#/default"}', "'#/default'"),
        ("schema", '{"x-a": {"b": {"multipleOf": 1000003}}, "items": {"$ref": "#/x-a/b"}}', "'#/x-a/b'"),
        ("schema", '{"enum": [{"type": "string"}], "items": {"$ref": "#/enum/0"}}', "'#/enum/0'"),
        ("schema", '{"$defs": {"a": {"$id": "b", "default": {}}}, "$ref": "#/$defs/a"}', "'$id'"),
    ],
)  # fmt: skip
def test_what_unfolds_to_too_much_is_refused_before_llguidance_reads_it(kind, text, named, monkeypatch):
    monkeypatch.setattr("pixedge.answer_format.find_fault", lambda *_: pytest.fail("llguidance read it"))
    with pytest.raises(UsageError) as refusal:
        AnswerFormat(kind, text)
    assert named in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("lark", chain(MAX_RULES - 2)),
        ("regex", ".*" * 100),
        ("regex", "[]a{9}:[b{1000}]]{100}\\{1000}{1000}"),
        ("regex", "[^]]{50000}"),
        ("regex", "|".join(f"word{at:x}" for at in range(5000))),
        ("lark", 'start: "(((" /[(]{3}/ ":::" a{2,3}\na: "x"~3 // (a: b{1000}){1000}{1000}\n'),
        ("lark", f'start: (s | "x")\ns: %json {{"properties": {{"a:": {{"pattern": "{"a?" * 40}"}}}}}}'),
        ("schema", '{"type": "number", "multipleOf": 0.01, "items": {"multipleOf": 1e9}}'),
        ("schema", '{"type": "string", "maxLength": 2147483647}'),
        ("schema", '{"properties": {"a/b~c": {"type": "null"}}, "items": {"$ref": "#/properties/a~1b~0c"}}'),
        ("schema", '{"type": "array", "items": {"$ref": "#"}}'),
        ("schema", references(300)),
    ],
)
def test_what_is_within_the_bounds_is_taken(kind, text):
    vocabulary().constraint(AnswerFormat(kind, text))


@pytest.mark.parametrize(
    "kind, text",
    [
        ("lark", 'start: "' + '\\"' * 40_000),
        ("lark", "start: /" + "\\/" * 40_000),
        ("lark", 'start: "a"{' + "1" * 90_000),
        ("regex", "a{" + "1" * 90_000),
        ("schema", json.dumps({"type": [name for at in range(4000) for name in (at, f"a{at}")]})),
    ],
)
def test_reading_a_format_takes_time_in_proportion_to_its_length(kind, text):
    """Strings without an end, long counts and mixed lists took its square: 50 s at the longest."""
    start = time.process_time()
    with pytest.raises(UsageError):
        AnswerFormat(kind, text)
    assert time.process_time() - start < 1


# The trial


@pytest.fixture
def trial():
    made = FormatTrial()
    yield made
    made.close()


TOKENS = "start: T0\n" + "".join(f"T{i}: {f' T{i + 1}' * 8}\n" for i in range(490)) + 'T490: "a"'
"""A chain of tokens that takes llguidance more than a second to refuse."""


def test_verdicts(trial):
    assert trial.find_fault("lark", chain(400), "grammar") == ""
    assert "unknown name" in trial.find_fault("lark", "start: foo", "grammar")
    with pytest.raises(UsageError, match=f"the grammar takes more than {SECONDS:g} s"):
        trial.find_fault("lark", TOKENS, "grammar")
    with pytest.raises(UsageError, match="ends the program"):
        trial.find_fault("lark", chain(12_000), "grammar")
    assert trial._process is not None and trial._process.poll() is None, "forks end, the process does not"
    assert trial.find_fault("lark", 'start: "a"', "grammar") == ""


def test_a_trial_is_bounded_in_processor_time_and_memory(trial):
    """What the forks took, as the process that waits for them counts it."""
    trial.use_vocabulary(vocabulary()._tokens)
    process = trial._running()
    for kind, text in [("lark", TOKENS), ("lark", chain(12_000)), ("regex", ".*" * 20_000)]:
        write_message(process.stdin, {"kind": kind, "text": text})
        verdict = read_message(process.stdout)
        assert verdict["fault"] is None
        assert verdict["seconds"] < SECONDS + 0.2
        assert verdict["bytes"] < 2 * MEMORY
    script = (
        "import pixedge.format_probe as probe; probe._limit(); bytearray(probe.MEMORY // 2); print(1);"
        "bytearray(2 * (probe.MEMORY + probe.STACK))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "1\n" and "MemoryError" in ended.stderr


def test_a_trial_compiles_against_the_vocabulary(trial):
    """Without one, what is only found with it would be found by the parent."""
    trial.use_vocabulary(vocabulary()._tokens)
    assert trial.find_fault("regex", "[a-z]+", "regular expression") == ""


def test_the_process_is_started_once_and_again_when_it_was_ended(trial):
    trial.find_fault("regex", "a", "regular expression")
    first = trial._process.pid
    trial.find_fault("regex", "b", "regular expression")
    assert trial._process.pid == first
    os.kill(first, signal.SIGKILL)
    assert trial.find_fault("regex", "c", "regular expression") == ""
    assert trial._process.pid != first


def test_the_process_imports_llguidance_alone_and_is_no_child_of_the_terminal(trial):
    script = (
        "import sys, io; import pixedge.format_probe as probe; probe.find_fault('regex', 'a');"
        "print([name for name in ('torch', 'numpy', 'PIL', 'onnxruntime') if name in sys.modules],"
        " sorted(name for name in sys.modules if name.startswith('pixedge')))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "[] ['pixedge', 'pixedge.format_probe', 'pixedge.held_schema']\n"
    trial.find_fault("regex", "a", "regular expression")
    assert os.getsid(trial._process.pid) != os.getsid(0)


def test_the_process_ends_with_its_parent():
    script = (
        "import os; from pixedge.format_trial import FormatTrial; t = FormatTrial();"
        "t.find_fault('regex', 'a', ''); print(t._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    for _ in range(200):
        try:
            os.kill(int(said), 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{int(said)}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the process goes on without its parent")


def test_verdicts_are_kept_and_bounded(trial, monkeypatch):
    monkeypatch.setattr(pixedge.format_trial, "_KEPT", 3)
    asked = []
    monkeypatch.setattr(
        trial, "_ask", lambda kind, text, noun: asked.append(text) or (None if text == "z" else "")
    )
    for text in "abcaabzz":
        if text == "z":
            with pytest.raises(UsageError):
                trial.find_fault("regex", text, "")
        else:
            trial.find_fault("regex", text, "")
    assert asked == ["a", "b", "c", "z"]
    assert len(trial._verdicts) == 3


def test_small_formats_are_not_tried(monkeypatch):
    monkeypatch.setattr(FormatTrial, "find_fault", lambda *_: pytest.fail("tried"))
    babble(AnswerFormat.from_schema({"type": "object", "properties": {"a": {"type": "integer"}}}), 1)
    assert not is_small("lark", "start: %json {}")


def test_other_work_goes_on_while_a_format_is_compiled():
    """llguidance lets go of Python's lock: else this thread would come to its turn once or twice."""
    done = threading.Event()
    compiling = threading.Thread(target=lambda: (find_fault("lark", TOKENS), done.set()))
    compiling.start()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    compiling.join()
    assert turns > 20


# What comes next


def test_a_mask_that_takes_too_long_ends_the_answer(monkeypatch):
    constraint = vocabulary().constraint(AnswerFormat.from_regex("[a-z]*"))

    class Slow:
        def consume_token(self, token):
            end = time.thread_time() + 0.15
            while time.thread_time() < end:
                pass

        def is_error(self):
            return False

        def compute_bitmask(self):
            return bytes([255] * 384)

    constraint._matcher = Slow()
    constraint.advance(1000 + ord("a"))
    with pytest.raises(PixedgeError, match=r"took 0\.\d+ s to work out and the limit is 0\.1 s"):
        constraint.allowed()


# Fuzz


class Cost:
    """The worst of many formats: processor time of this process, its memory, and what became of them."""

    def __init__(self) -> None:
        self.cases = self.refused = self.served = self.ended = 0
        self.seconds = self.mask = self.megabytes = 0.0
        self.before, self.peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    def take(self, seed: int, file: Path) -> None:
        name, kind, text = hostile_format(seed)
        where = f"seed {seed}, {name}"
        self.cases += 1
        start = time.process_time()
        constraint: Constraint | None = None
        try:
            constraint = vocabulary(file).constraint(AnswerFormat(kind, text))
            constraint.allowed()
        except UsageError as refusal:
            self.refused += 1
            assert "\n" not in str(refusal) and len(str(refusal)) < 480, where
        seconds = time.process_time() - start
        self.seconds = max(self.seconds, seconds)
        assert seconds < 2, where
        if constraint is not None:
            self.served += 1
            self._answer(constraint, np.random.default_rng(seed), where)
        self.megabytes = max(self.megabytes, resident() - self.before)
        assert resident() - self.before < 512, where

    def _answer(self, constraint: Constraint, random: np.random.Generator, where: str) -> None:
        try:
            for _ in range(MASKS):
                if not len(ids := (allowed := constraint.allowed())[allowed != EOS]):
                    break
                start = time.process_time()
                constraint.advance(int(random.choice(ids)))
                constraint.allowed()
                seconds = time.process_time() - start
                assert seconds < 0.15, where
                self.mask = max(self.mask, seconds)
        except PixedgeError as error:
            self.ended += 1
            assert "\n" not in str(error), where

    def row(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        return (
            f"{self.cases} cases: {self.refused} refused, {self.served} served, {self.ended} of these ended"
            f" with an error; at worst {self.seconds:.2f} s to begin, {self.mask:.3f} s a mask,"
            f" {self.megabytes:.0f} MB held and {peak - self.peak:.0f} MB at a time"
        )


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc, which tells memory")
def test_hostile_formats():
    vocabulary(DEMO_TEKKEN)._tokenizer()
    cost = Cost()
    for seed in range(72):
        cost.take(seed, DEMO_TEKKEN)
    assert cost.refused > 5 and cost.served > 5
    print(cost.row())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc, which tells memory")
def test_2000_hostile_formats():
    vocabulary(REAL_TEKKEN)._tokenizer()
    cost = Cost()
    for seed in range(2000):
        cost.take(seed, REAL_TEKKEN)
    print(cost.row())
