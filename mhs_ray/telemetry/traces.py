"""Sends spans to an OpenTelemetry collector (OTLP over HTTP), where the settings name one.

The dispatcher that leads tells of attempts and jobs once they ended, from the rows; the API of results as they are
posted, the courier of deliveries. Sending never holds work up: what the collector does not take in time is dropped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from mhs_ray import __version__
from mhs_ray.domain.sections import TelemetrySettings
from mhs_ray.domain.states import JobEvent
from mhs_ray.results.outbox import Decision, DeliveryState
from mhs_ray.store.sql.attempts import Attempts
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.deliveries import Claimed
from mhs_ray.store.sql.stories import job_of_delivery, story_of
from mhs_ray.telemetry.spans import SpanMaker

log = logging.getLogger(__name__)

_LATE: Final = timedelta(seconds=60)


class Traces:
    """One per process. platform: the platform's short name; part: which process this is."""

    def __init__(self, settings: TelemetrySettings, platform: str, part: str, db: Database) -> None:
        assert settings.otlp_endpoint is not None
        token = settings.otlp_token
        exporter = OTLPSpanExporter(
            endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces",
            headers={"Authorization": f"Bearer {token.get_secret_value()}"} if token else {},
            timeout=settings.otlp_timeout.total_seconds(),
        )
        resource = Resource.create(
            {"service.name": f"mhs-{part}", "service.version": __version__, "service.namespace": f"mhs-{platform}"}
        )
        self._spans = SpanMaker(platform, resource)
        self._processor = BatchSpanProcessor(exporter)
        self._db, self._every = db, settings.trace_every.total_seconds()
        self._attempts = Attempts(db)
        self._since = datetime.now(UTC) - _LATE
        self._recent: set[int] = set()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ from the rows

    def follow(self) -> None:
        """Tell of attempts that end from now on, in a thread until `close`; twice is as good as once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            try:
                self.look()
            except Exception:
                log.exception("what ended could not be traced; it is tried again")

    def look(self) -> int:
        """Tell of attempts that ended since the last look; return how many."""
        now, recent, told = datetime.now(UTC), set[int](), 0
        for row in self._attempts.ended(self._since - _LATE):
            recent.add(row.id)
            if row.id in self._recent:
                continue
            story = story_of(self._db, row.job_id)
            spans = self._spans.attempt(story, row.attempt)
            if row.outcome != JobEvent.RETRIED:
                spans += self._spans.job(story)
            for span in spans:
                self._processor.on_end(span)
            told += 1
        self._since, self._recent = now, recent
        return told

    # ------------------------------------------------------------ as it happens

    @contextmanager
    def posting(self, job_id: int | None, attempt: int) -> Iterator[None]:
        """Tell of the block as the POST of an attempt's results."""
        began, failed = datetime.now(UTC), True
        try:
            yield
            failed = False
        finally:
            if job_id is not None:
                end = datetime.now(UTC)
                name = ("post", attempt, began.isoformat())
                self._processor.on_end(
                    self._spans.make(
                        job_id, name, ("run", attempt), "results POST", began, end, {}, failed, SpanKind.SERVER
                    )
                )

    def delivered(self, claimed: Claimed, decision: Decision, status: int | None, began: datetime) -> None:
        """Tell of one try to deliver a result."""
        try:
            job_id = job_of_delivery(self._db, claimed.id)
        except Exception:
            log.exception("delivery %s could not be traced", claimed.id)
            return
        if job_id is None:
            return
        attributes: dict[str, str | int | bool] = {
            "mhs.delivery.state": decision.state,
            "mhs.delivery.try": claimed.tries,
        }
        if status is not None:
            attributes["http.response.status_code"] = status
        failed = decision.state in (DeliveryState.PARKED, DeliveryState.REFUSED)
        name = ("delivery", claimed.id, claimed.tries, claimed.looks)
        self._processor.on_end(
            self._spans.make(
                job_id, name, (), "delivery", began, datetime.now(UTC), attributes, failed, SpanKind.CLIENT
            )
        )  # fmt: skip

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(10)
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def open_traces(settings: TelemetrySettings, platform: str, part: str, db: Database) -> Traces | None:
    """Return what tells the collector; None where the settings name none."""
    return None if settings.otlp_endpoint is None else Traces(settings, platform, part, db)
