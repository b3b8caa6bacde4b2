"""Asks a process of its own whether a format can be compiled within limits; see `pixedge.format_probe`."""

import atexit
import contextlib
import hashlib
import os
import select
import signal
import subprocess
import threading
from collections import OrderedDict

from pixedge import format_probe
from pixedge.errors import UsageError
from pixedge.format_probe import MEMORY, SECONDS, Tokens, read_message, write_message
from pixedge.format_threads import compile_threads
from pixedge.own_process import start_module

WAIT = 60.0
"""Seconds that a trial may wait for a processor: it runs at the lowest priority."""

# Formats below this size are not tried: within llguidance's limits none was found that took more than 0.5 s
# and 60 MB, and at the lowest priority a trial may wait where a request should not.
_SMALL = {"schema": 16_000, "regex": 2_000, "lark": 2_000}

_KEPT = 1024  # verdicts, of up to 2,000 characters

_TOO_MUCH = (
    "the {} takes more than {:g} s of processor time or {} MiB to compile, or ends the program that does it;"
    " make it simpler"
)


def is_small(kind: str, text: str) -> bool:
    """Say whether a format is compiled without a trial."""
    return not hasattr(os, "fork") or (len(text) <= _SMALL[kind] and (kind != "lark" or "%" not in text))


def find_fault(kind: str, text: str, noun: str) -> str:
    """Return what is wrong with a format in llguidance's words, nothing where it can be used.

    Raises UsageError where finding that out takes more than it may.
    """
    if is_small(kind, text):
        return compile_threads().submit(format_probe.find_fault, kind, text).result()
    return _TRIAL.find_fault(kind, text, noun)


def check_cost(kind: str, text: str, noun: str, vocabulary: Tokens) -> None:
    """Raise UsageError where compiling a format against a vocabulary takes more than it may."""
    if not is_small(kind, text):
        _TRIAL.use_vocabulary(vocabulary)
        _TRIAL.find_fault(kind, text, noun)


class FormatTrial:
    """The process that tries formats: started when it is first needed, and again when it ended."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._vocabulary: Tokens | None = None
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()

    def use_vocabulary(self, vocabulary: Tokens) -> None:
        """Compile against a vocabulary from now on."""
        with self._lock:
            if self._vocabulary is not vocabulary:
                self._vocabulary = vocabulary
                self._verdicts.clear()
                self._end()

    def find_fault(self, kind: str, text: str, noun: str) -> str:
        """Return what is wrong with a format in llguidance's words, nothing where it can be used.

        Raises UsageError where compiling it takes more than it may. Known verdicts are kept.
        """
        key = hashlib.sha256(f"{kind}\0{text}".encode("utf-8", errors="surrogatepass")).digest()
        with self._lock:
            if key not in self._verdicts:
                self._verdicts[key] = self._ask(kind, text, noun)
                if len(self._verdicts) > _KEPT:
                    self._verdicts.popitem(last=False)
            fault = self._verdicts[key]
        if fault is None:
            raise UsageError(_TOO_MUCH.format(noun, SECONDS, MEMORY >> 20))
        return fault

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, kind: str, text: str, noun: str) -> str | None:
        for _ in range(2):
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(OSError):  # it ended since the last format
                write_message(process.stdin, {"kind": kind, "text": text})
                poll = select.poll()
                poll.register(process.stdout, select.POLLIN)
                if not poll.poll(WAIT * 1000):
                    self._end()
                    raise UsageError(
                        f"the {noun} could not be tried within {WAIT:g} s, as the machine is busy; ask again"
                    )
                if (verdict := read_message(process.stdout)) is not None:
                    fault: str | None = verdict["fault"]
                    return fault
            self._end()
        return None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._process = start_module(
                "pixedge.format_probe",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # its forks end with it, and Ctrl-C is not for it
            )
            if self._vocabulary is not None:
                assert self._process.stdin is not None
                tokens = [token.decode("latin-1") for token in self._vocabulary.tokens]
                message = {"tokens": tokens, "stop_id": self._vocabulary.eos_token_id}
                write_message(self._process.stdin, message)
        return self._process

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


_TRIAL = FormatTrial()


def _after_fork() -> None:
    """Begin with a new process in a child; the parent's is the parent's."""
    global _TRIAL
    if _TRIAL._process is not None:
        _TRIAL._process.returncode = 0  # not this process's child: nothing to wait for
    _TRIAL = FormatTrial()


def _at_exit() -> None:
    _TRIAL.close()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
