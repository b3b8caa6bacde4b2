"""Tries formats out in a process of its own, which a format may end or fill without harm to anybody.

`pixedge.format_trial` starts it once and sends one message a format; it imports llguidance and nothing else
of weight. For each format it forks, and the copy compiles it under limits: so the vocabulary is brought into
llguidance's form once, nothing is left behind, and a crash costs a fork and no new start. The verdict tells
what the trial cost. There is no matcher in it: that is the asking process's to make.

A message is its length, uint32, and JSON: a list of a vocabulary's tokens (bytes as Latin-1) and its stop id,
or kind and text of a format. A verdict has the fault, or null, and what the
trial took: seconds of processor time, and bytes that it held at most.
"""

import json
import os
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from pixedge.held_schema import hold

SECONDS = 0.5
"""Processor time of a trial; what passes takes the asking process as long again."""

MEMORY = 256 << 20
"""Bytes that a trial may take above what the process held before."""

STACK = 16 << 20
"""Bytes of stack of a trial: a quarter of what compiling has outside (pixedge.constraint)."""

SCHEMA_RULES: dict[str, Any] = {
    # As in what models write: one space, or a new line with its indentation. Without a bound, white space is
    # the one thing that a model may write for ever without saying anything.
    "whitespace_pattern": r"[ ]|\n[ ]{0,32}|\n\t{0,8}",
    # One spelling for each character. With \u0061 for "a" a model could write a key a second time, unseen,
    # and whoever parses the answer would take that one.
    "json_allowed_escapes": '"\\bfnrt',
    "lenient": False,
    "coerce_one_of": False,
}
# The first four hold a mask below a tenth of a second, the next two hold memory.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 25_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}

UNREADABLE = "cannot be read: "
"""How the fault of a text begins that is none."""

_LENGTH = struct.Struct("<I")


class Tokens:
    """What llguidance wants to know of a vocabulary: every token's bytes, and a text's tokens."""

    def __init__(self, tokens: Sequence[bytes], stop_id: int) -> None:
        """Take each token's bytes, none for control tokens; the stop id is the only one of those to come."""
        self.eos_token_id = stop_id
        self.bos_token_id = None
        self.special_token_ids = [stop_id]
        self.tokens = list(tokens)
        self.tokens[stop_id] = b"</s>"

    def __call__(self, text: bytes) -> list[int]:
        """Return tokens of a text, one for each byte: what they are does not matter to a trial."""
        return [self.tokens.index(bytes([byte])) for byte in text if bytes([byte]) in self.tokens]


def grammar_of(kind: str, text: str) -> str:
    """Return a format in llguidance's own form; kind and text as AnswerFormat has them."""
    from llguidance import LLMatcher, regex_to_lark

    if kind == "schema":
        held = json.dumps(hold(json.loads(text)), ensure_ascii=False)
        return LLMatcher.grammar_from_json_schema(held, overrides=SCHEMA_RULES)  # type: ignore[arg-type]
    if kind == "regex":
        # \d means 0 to 9 and not the digits of every script, which nobody expects of [A-Z]{2}-\d{4}
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='d')}/")
    return LLMatcher.grammar_from_lark(text)


def make_matcher(tokenizer: Any, grammar: str) -> Any:
    """Compile a grammar, under limits, to an LLMatcher; one with an error where that failed."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**LIMITS)
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def find_fault(kind: str, text: str, tokenizer: Any = None) -> str:
    """Return what is wrong with a format, in llguidance's words; nothing where it can be used.

    With a tokenizer it is compiled, as far as the first mask; without one only its grammar is.
    """
    from llguidance import LLMatcher, LLParserLimits

    try:
        grammar = grammar_of(kind, text)
        limits = LLParserLimits(**LIMITS)
        fault = LLMatcher.validate_grammar(grammar, limits=limits)
    except ValueError as error:  # half a surrogate, which JSON of Python's may hold and no text can
        return f"{UNREADABLE}{error}"
    if fault and not fault.startswith("WARNING"):
        return fault
    if tokenizer is not None:
        matcher = make_matcher(tokenizer, grammar)
        if not matcher.is_error():
            matcher.compute_bitmask()
    return ""


def read_message(stream: IO[bytes]) -> Any:
    """Read the next message; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    body = stream.read(_LENGTH.unpack(head)[0])
    return json.loads(body)


def write_message(stream: IO[bytes], message: Any) -> None:
    """Write a message."""
    body = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def _try(kind: str, text: str, tokenizer: Any) -> dict[str, Any]:
    """Try a format in a fork; fault is null where the fork came to no end, or to a bad one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(write, "wb") as out:
            _limit()
            threading.stack_size(STACK)
            fault: list[str] = []
            thread = threading.Thread(target=lambda: fault.append(find_fault(kind, text, tokenizer)))
            thread.start()
            thread.join()
            if fault:
                out.write(fault[0].encode("utf-8", errors="replace")[:2000] + b".")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()
    _, _, usage = os.wait4(child, 0)
    fault_text = said[:-1].decode("utf-8", errors="replace") if said else None
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "fault": fault_text,
        "seconds": usage.ru_utime + usage.ru_stime,
        "bytes": usage.ru_maxrss * unit,
    }


def _limit() -> None:
    """Bound what this process may take from here on, and let everybody else go first."""
    import resource

    os.nice(19)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the program that started this one may ignore or block it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process; RLIMIT_CPU counts whole seconds
    try:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + STACK + MEMORY,) * 2)
    except (OSError, ValueError):  # not Linux, where only the time is bounded
        pass


def main() -> None:
    """Try formats until there are no more."""
    tokenizer = None
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while (message := read_message(stdin)) is not None:
        if "tokens" in message:
            from llguidance import LLTokenizer, TokenizerWrapper

            tokens = [token.encode("latin-1") for token in message["tokens"]]
            tokenizer = LLTokenizer(TokenizerWrapper(Tokens(tokens, message["stop_id"])))
        else:
            write_message(stdout, _try(message["kind"], message["text"], tokenizer))


if __name__ == "__main__":
    main()
