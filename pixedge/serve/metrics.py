"""What the server counted, for Prometheus: a registry of its own, filled when it is asked for.

The driver's thread counts tokens in plain numbers, because an observation through the client library costs a
few microseconds and a small model takes few more for a token.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from pixedge.engine import Engine
from pixedge.kernels.attention import PAGE

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Histogram:
    """Counts of seconds by upper bounds; one thread adds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Begin with nothing; bounds ascend."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration, which may have been taken ``times`` times."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._sum += seconds * times

    @property
    def count(self) -> int:
        """How many were added."""
        return sum(self._counts)

    @property
    def mean(self) -> float:
        """Their mean, 0 where there are none."""
        return self._sum / self.count if self.count else 0.0

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """Give the counts as Prometheus wants them: each bound with all that lies below it."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class Metrics:
    """The server's counts.

    The event loop counts requests by their status; the driver's thread counts everything about tokens.
    running and waiting count answers, as the driver last saw them.
    """

    def __init__(self, engine: Engine, names: Iterable[str]) -> None:
        """Begin to count for one engine."""
        self._engine, self._name = engine, next(iter(names))
        self._lock = threading.Lock()
        self._statuses: Counter[int] = Counter({200: 0})
        self.ended: Counter[str] = Counter({"stop": 0, "length": 0, "cancelled": 0, "error": 0})
        self.prompt_tokens = self.picture_tokens = self.cached_tokens = self.completion_tokens = 0
        self.pictures = 0
        self.running = self.waiting = 0
        self.first_token = Histogram(_FIRST_TOKEN)
        self.between = Histogram(_BETWEEN)
        self.whole = Histogram(_WHOLE)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def answered(self, status: int) -> None:
        """Count a request to /v1 by the status it was answered with; 499 is a client that left before."""
        with self._lock:
            self._statuses[status] += 1

    def text(self) -> bytes:
        """Give everything in Prometheus' text form."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Give the families; the registry calls this."""
        info = InfoMetricFamily("pixedge_model", "The model that answers.")
        info.add_metric((), {"name": self._name})
        yield info
        with self._lock:
            statuses = dict(self._statuses)
        yield _counters("pixedge_requests", "Requests to /v1 by status.", "status", statuses)
        yield _counters("pixedge_answers", "Answers by how they ended.", "finish", self.ended)
        for name, value, text in (
            ("prompt_tokens", self.prompt_tokens, "Tokens of prompts whose answer began."),
            ("picture_tokens", self.picture_tokens, "Those of them that stand for patches of pictures."),
            ("cached_prompt_tokens", self.cached_tokens, "Those of them that were known and not computed."),
            ("completion_tokens", self.completion_tokens, "Tokens of answers."),
            ("pictures", self.pictures, "Pictures in prompts whose answer began."),
        ):
            yield CounterMetricFamily(f"pixedge_{name}", text, value=value)
        pages = self._engine.cache.pages
        used = pages.count - pages.available
        for name, gauge, text in (
            ("answers_running", self.running, "Answers under way in the engine."),
            ("answers_waiting", self.waiting, "Answers that wait to be admitted."),
            ("kv_cache_tokens", pages.count * PAGE, "Tokens that the KV cache holds."),
            ("kv_cache_used_tokens", used * PAGE, "Tokens held by or promised to answers under way."),
            ("kv_cache_use_ratio", used / pages.count, "The share of the two."),
            ("picture_cache_bytes", self._engine.runner.pictures.held, "Pictures' embeddings kept."),
        ):
            yield GaugeMetricFamily(f"pixedge_{name}", text, value=gauge)
        yield self.first_token.family(
            "pixedge_time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        yield self.between.family("pixedge_inter_token_seconds", "From a token of an answer to its next one.")
        yield self.whole.family("pixedge_answer_seconds", "From a request's arrival to the end of an answer.")


def _counters(name: str, text: str, label: str, counts: dict[int, int] | Counter[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, count in counts.items():
        family.add_metric((str(key),), count)
    return family
