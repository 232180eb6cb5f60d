"""A job's story as OpenTelemetry spans. Ids follow from the job's, so no process has to hand a context to another.

::

    job 42                              from its submission to its end
      submission                        its task's request, until it was committed
      attempt 1
        queue, placement, prepare, run
          results POST                  told by the API when it happens
      delivery                          told by the courier, one for each try

Attributes name types, outcomes and codes; nothing of a patient, a slide, a person or a secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from mhs_ray import __version__
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql.stories import JobStory

_SCOPE = InstrumentationScope("mhs_ray", __version__)
_FAILED = frozenset({JobEvent.FAILED, JobEvent.TIMED_OUT, JobEvent.RETRIED, JobEvent.EXPIRED})
Attributes = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Names:
    """What ids are made of. platform: so that two platforms with a job 42 have two traces."""

    platform: str
    job_id: int

    def trace(self) -> int:
        """Return the job's trace id."""
        return int.from_bytes(self._digest("")[:16], "big") or 1

    def span(self, *what: object) -> int:
        """Return the id of the span that `what` names within the trace; of nothing: the job's own."""
        return int.from_bytes(self._digest(":".join(map(str, what)) or "job")[16:24], "big") or 1

    def _digest(self, what: str) -> bytes:
        return hashlib.sha256(f"mhs/{self.platform}/{self.job_id}/{what}".encode()).digest()


@dataclass(frozen=True, slots=True)
class SpanMaker:
    """Makes spans of one platform."""

    platform: str
    resource: Resource

    def attempt(self, story: JobStory, number: int) -> list[ReadableSpan]:
        """Return the spans of an ended attempt."""
        at = {t.event: t.at for t in reversed(story.events) if t.attempt == number}
        before = [t.at for t in story.events if t.attempt < number]
        ready = max([story.created_at, *before])
        end = max(t.at for t in story.events if t.attempt == number)
        outcome = next(t.event for t in reversed(story.events) if t.attempt == number)
        attributes: dict[str, str | int | bool] = {
            "mhs.attempt": number, "mhs.instance_type": story.instance_type, "mhs.outcome": outcome,
        }  # fmt: skip
        failure = story.failures.get(number)
        if failure is not None:
            attributes |= {"mhs.failure.class": failure[0], "mhs.failure.code": failure[1]}
        cached = story.slide_cached.get(number)
        if cached is not None:
            attributes["mhs.slide_cached"] = cached
        name = ("attempt", number)
        spans = [self.make(story.job_id, name, (), f"attempt {number}", ready, end, attributes, outcome in _FAILED)]
        marks = [ready, at.get(JobEvent.DISPATCHED), at.get(JobEvent.PLACED), at.get(JobEvent.STARTED)]
        marks.append(at.get(JobEvent.EXITED, end) if marks[-1] else None)
        for phase, begin, stop in zip(("queue", "placement", "prepare", "run"), marks, marks[1:], strict=False):
            if begin is None:
                break
            spans.append(self.make(story.job_id, (phase, number), name, phase, begin, stop or end, {}))
            if stop is None:
                break  # it ended in this phase
        return spans

    def job(self, story: JobStory) -> list[ReadableSpan]:
        """Return the spans of an ended job itself."""
        end = story.ended_at or story.created_at
        attributes: dict[str, str | int | bool] = {
            "mhs.job.id": story.job_id,
            "mhs.instance_type": story.instance_type,
            "mhs.outcome": story.outcome,
        }
        failed = story.outcome in {"failed", "timed out"}
        return [
            self.make(story.job_id, (), None, f"job {story.job_id}", story.asked_at, end, attributes, failed),
            self.make(story.job_id, ("submission",), (), "submission", story.asked_at, story.created_at, {}),
        ]

    def make(
        self,
        job_id: int,
        name: tuple[object, ...],
        parent: tuple[object, ...] | None,
        title: str,
        begin: datetime,
        end: datetime,
        attributes: Attributes,
        failed: bool = False,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> ReadableSpan:
        """Return one span. name, parent: what their ids are made of; () is the job's own, None no parent."""
        names = Names(self.platform, job_id)

        def context(what: tuple[object, ...]) -> SpanContext:
            return SpanContext(names.trace(), names.span(*what), False, TraceFlags(TraceFlags.SAMPLED))

        return ReadableSpan(
            name=title,
            context=context(name),
            parent=None if parent is None else context(parent),
            resource=self.resource,
            attributes=attributes,
            kind=kind,
            instrumentation_scope=_SCOPE,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=_ns(begin),
            end_time=max(_ns(begin), _ns(end)),
        )


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e6) * 1000
