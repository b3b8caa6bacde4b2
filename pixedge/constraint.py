"""Which tokens may come next, so that an answer matches its format; worked out while the model runs.

llguidance does the work. mistral_common's own adapter to it is not used: it hands the control tokens over
under their names, and a grammar could then ask for them. Here they have no text and no bit.
"""

import threading
import time
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pixedge.answer_format import AnswerFormat
from pixedge.errors import PixedgeError, UsageError
from pixedge.format_probe import Tokens, make_matcher
from pixedge.format_threads import compile_threads, mask_threads
from pixedge.format_trial import check_cost

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

MASK_SECONDS = 0.1
"""Processor time that working out what may come next may take, once an answer has begun."""

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

        Raises UsageError for a format that takes too much, or that no answer can match.
        """
        check_cost(answer_format.kind, answer_format.text, answer_format.noun, self._tokens)
        return compile_threads().submit(self._begin, answer_format).result()

    def _begin(self, answer_format: AnswerFormat) -> "Constraint":
        tokenizer, usable = self._tokenizer(), np.packbits(self._usable(), bitorder="little")
        start = time.thread_time()
        matcher = make_matcher(tokenizer, answer_format.compiled)
        constraint = Constraint(matcher, answer_format, usable, self._tekken.eos_id)
        constraint.seconds = time.thread_time() - start
        return constraint

    @cached_property
    def _tokens(self) -> "_Tokens":
        return _Tokens(self._tekken)

    def _tokenizer(self) -> "LLTokenizer":
        with self._lock:
            if self._built is None:
                from llguidance import LLTokenizer, TokenizerWrapper

                self._built = LLTokenizer(TokenizerWrapper(self._tokens))
            return self._built

    def _usable(self) -> np.ndarray:
        """Say for each token whether an answer may hold it, bool [vocab]: text, and the stop id."""
        usable = np.ones(self._tekken.n_words, bool)
        usable[: self._tekken.num_special_tokens] = False
        usable[self._tekken.eos_id] = True
        return usable


class _Tokens(Tokens):
    """A tokenizer's vocabulary; control tokens have no text."""

    def __init__(self, tekken: "Tekkenizer") -> None:
        first = tekken.num_special_tokens
        pieces = [tekken.id_to_byte_piece(id) for id in range(first, tekken.n_words)]
        super().__init__([b""] * first + pieces, tekken.eos_id)
        self._tekken = tekken

    def __call__(self, text: str) -> list[int]:  # type: ignore[override]
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
        self.seconds = 0.0
        """Processor time that compiling the format took."""
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
            self._next = mask_threads().submit(self._follow, token)

    def _follow(self, token: int) -> np.ndarray:
        start = time.thread_time()
        self._matcher.consume_token(token)
        ids = self._look()
        if (seconds := time.thread_time() - start) > MASK_SECONDS:
            raise PixedgeError(
                f"the answer cannot be held to the {self.answer_format.noun}: what may come next took"
                f" {seconds:.2f} s to work out and the limit is {MASK_SECONDS:g} s; make it simpler"
            )
        return ids

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
