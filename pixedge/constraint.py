"""Which tokens may come next, so that an answer matches its format; worked out while the model runs.

llguidance does the work. mistral_common's own adapter to it is not used: it hands the control tokens over
under their names, and a grammar could then ask for them. Here they have no text and no bit.
"""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pixedge.answer_format import AnswerFormat
from pixedge.errors import PixedgeError, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

_NOTHING = "the {} leaves nothing that the answer could go on with; see whether it can be met at all"


class Vocabulary:
    """A tokenizer's vocabulary in llguidance's form, built when the first constraint is asked for."""

    def __init__(self, tekken: "Tekkenizer") -> None:
        """Keep the tokenizer; nothing is built yet."""
        self._tekken = tekken
        self._lock = threading.Lock()
        self._built: LLTokenizer | None = None

    def constraint(self, answer_format: AnswerFormat) -> "Constraint":
        """Begin an answer; any thread may call this.

        Raises UsageError for a format that is too large, or that no answer can match.
        """
        from llguidance import LLMatcher, LLParserLimits

        # For formats that strangers send: none of those tried took an answer more than 50 MB and a second.
        limits = LLParserLimits(
            initial_lexer_fuel=200_000,
            step_lexer_fuel=100_000,
            max_lexer_states=25_000,
            max_grammar_size=100_000,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._tokenizer(), answer_format.compiled, log_level=0, limits=limits)
        usable = np.packbits(self._usable(), bitorder="little")
        return Constraint(matcher, answer_format, usable, self._tekken.eos_id)

    def _tokenizer(self) -> "LLTokenizer":
        with self._lock:
            if self._built is None:
                from llguidance import LLTokenizer, TokenizerWrapper

                self._built = LLTokenizer(TokenizerWrapper(_Tokens(self._tekken)))
            return self._built

    def _usable(self) -> np.ndarray:
        """Say for each token whether an answer may hold it, bool [vocab]: text, and the stop id."""
        usable = np.ones(self._tekken.n_words, bool)
        usable[: self._tekken.num_special_tokens] = False
        usable[self._tekken.eos_id] = True
        return usable


class _Tokens:
    """What llguidance wants to know of a vocabulary: every token's bytes, and a text's canonical tokens."""

    def __init__(self, tekken: "Tekkenizer") -> None:
        first = tekken.num_special_tokens
        self._tekken = tekken
        self.eos_token_id = tekken.eos_id
        self.bos_token_id = None
        self.special_token_ids = [tekken.eos_id]
        self.tokens = [b""] * first + [tekken.id_to_byte_piece(id) for id in range(first, tekken.n_words)]
        self.tokens[tekken.eos_id] = b"</s>"

    def __call__(self, text: str) -> list[int]:
        return self._tekken.encode(text, bos=False, eos=False)


class Constraint:
    """The state of one answer: what may come next, and whether it may end here.

    The tokens allowed next are worked out by another thread from the moment that a token is chosen, while
    the model runs.
    """

    def __init__(
        self, matcher: "LLMatcher", answer_format: AnswerFormat, usable: np.ndarray, stop_id: int
    ) -> None:
        """Take a matcher at its beginning; usable, bits uint8 [vocab / 8], are the tokens of any answer."""
        self.answer_format = answer_format
        self._matcher = matcher
        self._usable = usable
        self._stop_id = stop_id
        try:
            first = self._look()
        except PixedgeError as error:
            raise UsageError(str(error)) from None
        if answer_format.kind == "schema" and first.tolist() == [stop_id]:
            raise UsageError(_NOTHING.format("schema"))
        self._next: Future[np.ndarray] = Future()
        self._next.set_result(first)

    def allowed(self) -> np.ndarray:
        """Return the ids that may come next, int64 [n], ascending; the stop id where the answer may end.

        Waits until they are known. Raises PixedgeError when the format leaves none, or takes too much.
        """
        return self._next.result()

    def advance(self, token: int) -> None:
        """Take the token that was chosen, and begin to work out what may follow it."""
        if token != self._stop_id:
            self._next = _threads().submit(self._follow, token)

    def _follow(self, token: int) -> np.ndarray:
        self._matcher.consume_token(token)
        return self._look()

    def _look(self) -> np.ndarray:
        """Work out what may come next, ids int64 [n]."""
        if not self._matcher.is_error():
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: len(self._usable)]
        if self._matcher.is_error():
            cause = self._matcher.get_error().partition("\n")[0][:160]
            if cause.startswith("NoExtension"):
                raise PixedgeError(_NOTHING.format(self.answer_format.noun))
            raise PixedgeError(
                f"the answer cannot be held to the {self.answer_format.noun}: {cause}; make it simpler"
            )
        ids = np.flatnonzero(np.unpackbits(bits & self._usable, bitorder="little").view(bool))
        if not len(ids):
            raise PixedgeError(_NOTHING.format(self.answer_format.noun))
        return ids


_POOL: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    """Give the threads that work formats out, for all answers of the process."""
    global _POOL
    if _POOL is None:
        _POOL = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "pixedge-constraint")
    return _POOL


def _after_fork() -> None:
    """Begin with new threads in a child process; the parent's did not come along."""
    global _POOL
    _POOL = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
