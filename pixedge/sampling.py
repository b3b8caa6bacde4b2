"""From logits to one token id: penalties, temperature, truncation, a seeded draw.

The order is vLLM's: repetition, frequency and presence penalties, then the answer's format, temperature,
min-p, top-k, top-p, then the draw. Log-probabilities are those of the model's own distribution, before any of
it; where an answer has a format, those among the tokens that it allows.
"""

import contextlib
import math
import reprlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pixedge.answer_format import AnswerFormat
from pixedge.constraint import Constraint
from pixedge.errors import PixedgeError, UsageError

# What the largest 64-bit seed of a torch generator allows without wrapping to a negative number.
MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop; the defaults are greedy and without penalties.

    temperature         0 takes the most likely token; above, logits are divided by it
    top_k               keep the k most likely tokens; 0 keeps all
    top_p               keep the fewest most likely tokens whose probabilities reach top_p (Holtzman 2019)
    min_p               keep tokens at least min_p times as likely as the most likely one (Nguyen 2024)
    repetition_penalty  divides positive and multiplies negative logits of tokens in prompt or answer
                        (Keskar 2019, CTRL); 1 is off
    presence_penalty    subtracted once from the logit of every token of the answer; 0 is off
    frequency_penalty   subtracted once per occurrence in the answer; 0 is off
    seed                the same seed gives the same draws; None takes one at random
    stop                strings that end the answer; they are not part of it
    max_tokens          the longest answer, in tokens
    logprobs            how many of the most likely tokens to report beside each chosen one; None for none
    answer_format       what the whole answer must match; None lets the model say anything

    Raises UsageError, which names the value and the allowed range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 1024
    logprobs: int | None = None
    answer_format: AnswerFormat | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        _check_number("temperature", self.temperature, 0.0, math.inf, "a number from 0 up")
        _check_integer("top_k", self.top_k, 0, MAX_SEED, "0 (off) or a positive integer")
        _check_number("top_p", self.top_p, 0.0, 1.0, "above 0 and at most 1", above=True)
        _check_number("min_p", self.min_p, 0.0, 1.0, "from 0 to 1")
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, "above 0", above=True)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0, "from -2 to 2")
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "from -2 to 2")
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, MAX_SEED, f"an integer from 0 to {MAX_SEED}")
        _check_integer("max_tokens", self.max_tokens, 1, MAX_SEED, "a positive integer")
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS, f"an integer from 0 to {MAX_LOGPROBS}")
        # A string is a sequence of strings too: stop="END" would silently stop at every E, N and D.
        if isinstance(self.stop, str):
            raise UsageError(f"stop is the string {self.stop!r}; give a tuple of strings")
        if not isinstance(self.stop, Sequence):
            raise UsageError(f"stop is {self.stop!r}; give a tuple of strings")
        object.__setattr__(self, "stop", tuple(self.stop))
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise UsageError(f"stop contains {text!r}; give strings of at least one character")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True)
class SampledToken:
    """A chosen token; log-probabilities are natural logarithms under the model's unmodified distribution.

    Where the answer has a format, the distribution is that over the tokens it allows at this place.

    top_logprobs holds the `logprobs` most likely (id, logprob) pairs, likeliest first, equal ones by id.
    """

    id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one request, one after the other.

    Each sampler owns its generator and takes exactly one uniform number from it per token, so the same seed
    and the same logits give the same tokens whatever else runs. Penalties count the tokens that this sampler
    chose, and prompt_ids for the repetition penalty.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int] = (), constraint: Constraint | None = None
    ) -> None:
        """Keep the prompt's ids and seed the generator; `seed` tells which seed it was.

        constraint is at its beginning and belongs to params.answer_format (``Tokenizer.constraint`` makes
        it).
        """
        assert (constraint is None) == (params.answer_format is None), "a format needs its constraint"
        self.params = params
        self.constraint = constraint
        self.seed = secrets.randbits(32) if params.seed is None else params.seed
        self._generator = torch.Generator().manual_seed(self.seed)
        self._repeats = params.repetition_penalty != 1.0
        self._counts_used = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self._prompt_ids = tuple(prompt_ids) if self._repeats else ()
        self._seen: torch.Tensor | None = None  # bool [vocab]: in prompt or answer
        self._counts: torch.Tensor | None = None  # float32 [vocab]: occurrences in the answer

    @property
    def unconditional(self) -> bool:
        """Whether the logits, and a number from ``uniform`` unless greedy, are all that a choice needs."""
        held = self.constraint is not None
        return not (held or self._repeats or self._counts_used or self.params.logprobs)

    def uniform(self) -> float:
        """Take the next number in [0, 1) from the generator: one for each token that is drawn."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def sample(self, logits: torch.Tensor) -> SampledToken:
        """Choose the next token from logits [vocab] of any float type and device.

        Raises PixedgeError when a logit is not finite, or when the answer's format cannot be kept to.
        """
        assert logits.ndim == 1, f"logits of one position expected, got shape {tuple(logits.shape)}"
        raw = logits.detach().to("cpu", torch.float32)
        # numpy, because torch would share such work out among threads, which then look for more of it during
        # the next step's first milliseconds and take the cores from it.
        values = raw.numpy()
        if not np.isfinite(values).all():
            bad = int((~torch.isfinite(raw)).sum())
            raise PixedgeError(
                f"{bad} of the model's {raw.numel()} logits are not finite, which in float16 or bfloat16"
                " means that an activation overflowed; run the model in float32"
            )
        scores = self._penalised(raw)
        allowed = None
        if self.constraint is not None:
            # From here on there are no other tokens: an index counts among the allowed ones.
            allowed = self.constraint.allowed()
            values, same = values[allowed], scores is raw
            raw = torch.from_numpy(values)
            scores = raw if same else torch.from_numpy(scores.numpy()[allowed])
        index = int(scores.numpy().argmax()) if self.params.greedy else self._draw(scores)
        token = index if allowed is None else int(allowed[index])
        if self.constraint is not None:
            self.constraint.advance(token)
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1

        most = values.max()
        log_total = float(most) + math.log(np.exp(values - most).sum(dtype=np.float64))
        best: tuple[tuple[int, float], ...] = ()
        if self.params.logprobs:
            highest, found = _most_likely(raw, self.params.logprobs)
            count = self.params.logprobs
            ids = found[:count].numpy() if allowed is None else allowed[found[:count].numpy()]
            # In float64 as the token's own below, or the two would differ in the seventh digit.
            best = tuple(zip(ids.tolist(), (highest[:count].double() - log_total).tolist(), strict=True))
        return SampledToken(token, float(values[index]) - log_total, best)

    def _penalised(self, raw: torch.Tensor) -> torch.Tensor:
        """Apply the three penalties to logits [vocab]; the input is left as it is."""
        params, scores = self.params, raw
        if self._repeats:
            if self._seen is None:
                self._seen = torch.zeros(raw.numel(), dtype=torch.bool)
                self._seen[torch.tensor(self._prompt_ids, dtype=torch.long)] = True
            factor = params.repetition_penalty
            scores = torch.where(
                self._seen, torch.where(scores > 0, scores / factor, scores * factor), scores
            )
            scores = torch.nan_to_num(scores)  # a factor at the ends of float64 leaves float32
        if self._counts_used:
            if self._counts is None:
                self._counts = torch.zeros(raw.numel())
            scores = scores - params.frequency_penalty * self._counts
            scores = scores - params.presence_penalty * (self._counts > 0)
        return scores

    def _draw(self, scores: torch.Tensor) -> int:
        """Draw from scores [vocab] after temperature, min-p, top-k and top-p."""
        params = self.params
        # Relative to the best, so that the smallest temperature gives -inf or 0 and never inf - inf; a
        # temperature that float32 would round to 0 must not divide.
        temperature = max(params.temperature, torch.finfo(torch.float32).tiny)
        values = scores.numpy()
        with np.errstate(over="ignore"):
            relative = (values - values.max()) / np.float32(temperature)
        ids: np.ndarray | None = None
        if params.min_p > 0.0:
            ids = np.flatnonzero(relative >= math.log(params.min_p))  # [kept]
            relative = relative[ids]
        if params.top_k or params.top_p < 1.0:
            keep = min(params.top_k or len(relative), len(relative))
            best, order = _nucleus(torch.from_numpy(relative), keep, params.top_p)
            relative = best.numpy()
            ids = order.numpy() if ids is None else ids[order.numpy()]
        # Inverse transform sampling: one uniform number, whatever the number of candidates. In numpy for the
        # reason that ``sample`` gives; on a vocabulary of 131,072 it takes a tenth of the time too.
        cumulative = np.exp(relative.astype(np.float64)).cumsum()
        uniform = self.uniform() * cumulative[-1]
        # Rounding can carry the product up to the total: the last token that has a share of it.
        last = int(np.searchsorted(cumulative, cumulative[-1]))
        index = min(int(np.searchsorted(cumulative, uniform, side="right")), last)
        return index if ids is None else int(ids[index])


def _most_likely(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give at least the `count` highest of scores [n] and their ids, highest first, equal ones by id.

    All scores that equal the last one are included, so that a cut after it does not depend on how topk breaks
    ties. Sorting the few is what makes this affordable on a vocabulary of 131,072.
    """
    count = min(count, scores.numel())
    if count < scores.numel():
        threshold = torch.topk(scores, count, sorted=False).values.min()
        ids = torch.nonzero(scores >= threshold).squeeze(1)
    else:
        ids = torch.arange(scores.numel())
    values, order = torch.sort(scores[ids], descending=True, stable=True)
    return values, ids[order]


def _nucleus(scores: torch.Tensor, keep: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep the `keep` highest of scores [n], then the fewest of those that reach the probability top_p."""
    width = keep
    if top_p < 1.0 and keep == scores.numel():
        # The nucleus is nearly always small: look among the best 512 first, and further when they fall short.
        width = min(keep, 512)
    total = torch.logsumexp(scores.double(), dim=0)
    while True:
        values, ids = _most_likely(scores, width)
        values, ids = values[:keep], ids[:keep]
        if top_p >= 1.0:
            return values, ids
        if keep < scores.numel():
            total = torch.logsumexp(values.double(), dim=0)
        mass = torch.exp(values.double() - total).cumsum(0)
        reached = torch.nonzero(mass >= top_p).squeeze(1)
        if len(reached):
            end = int(reached[0]) + 1
            return values[:end], ids[:end]
        if len(values) >= keep:
            return values, ids
        width = min(keep, 16 * width)


class StopStrings:
    """Passes text on until a stop string completes, and holds back what may still become one.

    The stop string that is complete first ends the text, wherever the pieces were cut; of two that end at the
    same character the longer one wins.

    >>> stream = StopStrings(("END",))
    >>> stream.push("one E"), stream.push("N two EN"), stream.push("D three")
    ('one ', 'EN two ', '')
    >>> stream.matched
    'END'
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """Take the stop strings, each at least one character; without any, text passes straight through."""
        self._stop = tuple(stop)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take the next piece of text and give what is certain not to belong to a stop string."""
        if self.matched is not None:
            return ""
        pending = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := pending.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return pending[:start]
        keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
        cut = len(pending) - keep
        self._held = pending[cut:]
        return pending[:cut]

    def flush(self) -> str:
        """Give what was held back, once no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning, but not the whole, of stop."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _check_number(
    name: str, value: object, low: float, high: float, allowed: str, *, above: bool = False
) -> None:
    """Refuse what is not a finite number in [low, high], or in (low, high] with `above`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer above the largest float
            if math.isfinite(value) and low <= float(value) <= high and not (above and value == low):
                return
    raise UsageError(f"{name} is {reprlib.repr(value)}; it must be {allowed}")


def _check_integer(name: str, value: object, low: int, high: int, allowed: str) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return
    raise UsageError(f"{name} is {reprlib.repr(value)}; it must be {allowed}")
