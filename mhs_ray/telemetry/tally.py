"""Counters and histograms of ended attempts, made from the database's rows: every replica of the API counts the same.

They count from midnight (UTC), so that a replica that starts late agrees with one that has run for a month: behind a
load balancer a scrape may reach any of them. Prometheus takes the fall to 0 at midnight for a restart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql.attempts import EndedAttempt, Totals

OUTCOMES: Final = tuple(
    str(e) for e in (JobEvent.SUCCEEDED, JobEvent.FAILED, JobEvent.TIMED_OUT, JobEvent.CANCELLED, JobEvent.RETRIED)
)
_LATE: Final = timedelta(seconds=60)  # an end is committed this long after it happened at the latest
_BOUNDS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 5400.0)
_PHASES: Final = {
    "queue": "waiting in the queue",
    "placement": "from the queue until a node had it",
    "prepare": "from there until the container ran",
    "run": "from there until it ended",
}
OTHER: Final = "other"


def bounded(instance_type: str) -> str:
    """Return the type as a label: one of the contract's, or ``other``."""
    return instance_type if instance_type in INSTANCE_TYPES else OTHER


class Ended(Protocol):
    """Where ended attempts are read."""

    def totals(self, since: datetime, until: datetime, bounds: Sequence[float]) -> Totals:
        """Sum up those that ended in [since, until)."""

    def ended(self, since: datetime) -> Iterable[EndedAttempt]:
        """Return those that ended since then."""


class Tally:
    """Not safe between threads. Of a day that has begun before it, the sums are the database's; then it reads rows."""

    def __init__(self, attempts: Ended) -> None:
        self._attempts = attempts
        self._clear()
        self._day: datetime | None = None
        self._since = datetime.min.replace(tzinfo=UTC)

    def _clear(self) -> None:
        self._recent: set[int] = set()  # counted, and young enough to be read again
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._cache: Counter[str] = Counter()
        self._seconds = {phase: {kind: _Histogram() for kind in INSTANCE_TYPES} for phase in _PHASES}

    def advance(self, now: datetime) -> None:
        """Count what ended since the last call."""
        day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if day != self._day:
            until = max(day, now - _LATE)
            totals = self._attempts.totals(day, until, _BOUNDS)
            self._clear()
            self._add(totals)
            self._day, self._since = day, until
        recent = set()
        for row in self._attempts.ended(self._since):
            recent.add(row.id)
            if row.id not in self._recent:
                self._count(row)
        self._recent, self._since = recent, max(self._since, now - _LATE)

    def _add(self, totals: Totals) -> None:
        for (kind, outcome), count in totals.outcomes.items():
            self._outcomes[bounded(kind), outcome] += count
        self._failures.update(totals.failures)
        self._cache.update({"hit" if cached else "miss": count for cached, count in totals.cached.items()})
        for (phase, kind, bound), (count, seconds) in totals.seconds.items():
            self._seconds[phase].setdefault(bounded(kind), _Histogram()).add_many(bound, count, seconds)

    def _count(self, row: EndedAttempt) -> None:
        kind = bounded(row.instance_type)
        self._outcomes[kind, row.outcome] += 1
        if row.failure_class is not None and row.failure_code is not None:
            self._failures[row.failure_class, row.failure_code] += 1
        if row.slide_cached is not None:
            self._cache["hit" if row.slide_cached else "miss"] += 1
        took = {"queue": row.queue_s, "placement": row.placement_s, "prepare": row.prepare_s, "run": row.run_s}
        for phase, seconds in took.items():
            if seconds is not None:
                self._seconds[phase].setdefault(kind, _Histogram()).add(seconds)

    def families(self) -> Iterator[Metric]:
        """Yield what was counted today; what did not happen yet counts 0."""
        attempts = CounterMetricFamily(
            "mhs_attempts", "Attempts that ended, by how", labels=("instance_type", "outcome")
        )
        for kind in self._seconds["run"]:
            for outcome in OUTCOMES:
                attempts.add_metric((kind, outcome), self._outcomes[kind, outcome])
        yield attempts
        failures = CounterMetricFamily(
            "mhs_attempt_failures", "Attempts that failed, by whose failure and what", labels=("class", "code")
        )
        for code in FailureCode:
            label = (str(Failure(code, "", "").failure_class), str(code))
            failures.add_metric(label, self._failures[label])
        yield failures
        cache = CounterMetricFamily(
            "mhs_slide_cache_requests", "Slides that attempts asked their node's cache for", labels=("result",)
        )
        for result in ("hit", "miss"):
            cache.add_metric((result,), self._cache[result])
        yield cache
        gpu = CounterMetricFamily(
            "mhs_gpu_seconds", "Seconds that containers held a GPU, counted at their end", labels=("instance_type",)
        )
        for kind, histogram in self._seconds["run"].items():
            gpu.add_metric((kind,), histogram.sum)
        yield gpu
        for phase, words in _PHASES.items():
            family = HistogramMetricFamily(
                f"mhs_attempt_{phase}_seconds", f"Seconds of attempts {words}", labels=("instance_type",)
            )
            for kind, histogram in self._seconds[phase].items():
                family.add_metric((kind,), histogram.buckets(), histogram.sum)
            yield family


class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.add_many(bisect_left(_BOUNDS, seconds), 1, seconds)

    def add_many(self, bound: int, count: int, seconds: float) -> None:
        self._counts[bound] += count
        self.sum += seconds

    def buckets(self) -> Sequence[tuple[str, float]]:
        """Return (upper bound, how many are not above it)."""
        bounds = (*(str(b) for b in _BOUNDS), "+Inf")
        return list(zip(bounds, accumulate(self._counts), strict=True))
