"""The platform's metrics as Prometheus reads them, made from the database's truth at the moment of the scrape.

Labels are bounded: states, instance types of the contract, failure codes. None names a company, a person or an id.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from mhs_ray import __version__
from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.models import ImageStatus
from mhs_ray.domain.states import ACTIVE, JobState
from mhs_ray.results.outbox import DeliveryState
from mhs_ray.services.core import Core
from mhs_ray.store.blobs.local import LocalBlobs
from mhs_ray.store.sql.attempts import Attempts
from mhs_ray.store.sql.lead import is_led
from mhs_ray.store.sql.pulse import Beat, look
from mhs_ray.telemetry.credentials import expiries
from mhs_ray.telemetry.tally import Tally, bounded

log = logging.getLogger(__name__)

_NOT_DONE = (
    DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.UNKNOWN, DeliveryState.PARKED, DeliveryState.REFUSED,
)  # fmt: skip


class PlatformMetrics:
    """Safe between threads: one scrape at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tally = Tally(Attempts(core.db))
        self._lock = threading.Lock()

    def prime(self) -> None:
        """Sum up the day so far, so that the first scrape need not: of a million attempts that takes seconds."""
        with self._lock:
            try:
                self._tally.advance(datetime.now(UTC))
            except SQLAlchemyError as error:
                log.warning("metrics: the day so far is summed up later: %s", type(error).__name__)

    def render(self, parts: Mapping[str, str], nodes: Sequence[Mapping[str, Any]] | None) -> bytes:
        """Return the exposition. parts: name → ``ok`` or what is wrong; nodes: None when Ray does not answer."""
        with self._lock:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Families(list(self._families(parts, nodes))))
            return generate_latest(registry)

    def _families(self, parts: Mapping[str, str], nodes: Sequence[Mapping[str, Any]] | None) -> Iterator[Metric]:
        now = datetime.now(UTC)
        yield _gauge("mhs_info", "The platform's version", ("version",), {(__version__,): 1})
        up = {(part,): float(state == "ok") for part, state in parts.items()}
        yield _gauge("mhs_part_up", "Whether a part of the platform can do its work", ("part",), up)
        if nodes is not None:
            yield _nodes(nodes)
        yield from self._room()
        ends = {(name,): at for name, at in expiries(self._core.settings)}
        yield _gauge(
            "mhs_credential_expiry_timestamp_seconds", "When a certificate ends, Unix time", ("credential",), ends
        )
        try:
            beat, led = look(self._core.db, now), is_led(self._core.db)
            self._tally.advance(now)
        except SQLAlchemyError as error:
            log.warning("metrics: the database does not answer: %s", type(error).__name__)
            return  # mhs_part_up says so, and nothing else is made up
        yield _gauge("mhs_dispatcher_leader", "Whether a dispatcher leads on this database", (), {(): float(led)})
        yield from _beat(beat, now)
        yield from self._tally.families()

    def _room(self) -> Iterator[Metric]:
        core = self._core
        folders = {"home": core.settings.home}
        if isinstance(core.blobs, LocalBlobs):
            folders["blobs"] = core.blobs.root
        free = {(name,): float(_free(str(folder))) for name, folder in folders.items()}
        yield _gauge("mhs_disk_free_bytes", "Bytes that are free on the disk of a folder", ("volume",), free)
        floor = {(name,): float(core.settings.blobs.min_free) for name in folders}
        yield _gauge("mhs_disk_floor_bytes", "Free bytes below which nothing is stored any more", ("volume",), floor)
        try:
            core.room.check()
            takes = 1.0
        except (MhsError, OSError):
            takes = 0.0
        yield _gauge("mhs_intake_open", "Whether new work is taken; 0 answers 507", (), {(): takes})
        if isinstance(core.blobs, LocalBlobs) and core.blobs.limits.quota_bytes is not None:
            used, quota = float(core.blobs.used_bytes()), float(core.blobs.limits.quota_bytes)
            yield _gauge("mhs_blob_used_bytes", "Bytes in the folder of blobs", (), {(): used})
            yield _gauge("mhs_blob_quota_bytes", "Bytes that the folder of blobs may hold", (), {(): quota})


def _beat(beat: Beat, now: datetime) -> Iterator[Metric]:
    def age(since: datetime | None) -> float:
        return 0.0 if since is None else max(0.0, (now - since).total_seconds())

    states = (JobState.QUEUED, *sorted(ACTIVE))
    jobs: Counter[tuple[str, ...]] = Counter({(str(s), kind): 0 for s in states for kind in INSTANCE_TYPES})
    for (state, kind), count in beat.jobs.items():
        jobs[state, bounded(kind)] += count
    yield _gauge("mhs_jobs", "Jobs that have not ended", ("state", "instance_type"), jobs)
    oldest = {(kind,): age(beat.oldest_queued.get(kind)) for kind in {*INSTANCE_TYPES, *beat.oldest_queued}}
    yield _gauge(
        "mhs_queue_oldest_age_seconds", "How long the oldest queued job waits", ("instance_type",),
        {key: value for key, value in oldest.items() if bounded(key[0]) == key[0]},
    )  # fmt: skip
    yield _gauge(
        "mhs_queue_expiring_jobs", "Queued jobs whose slide URL or token ends within an hour", (),
        {(): float(beat.expiring)},
    )  # fmt: skip
    waiting = {(str(s),): float(beat.deliveries.get(s, 0)) for s in _NOT_DONE}
    yield _gauge("mhs_deliveries", "Deliveries to Techcyte that are not done", ("state",), waiting)
    yield _gauge(
        "mhs_delivery_oldest_age_seconds", "Age of the oldest delivery that is still tried", (),
        {(): age(beat.oldest_delivery)},
    )  # fmt: skip
    images = {(str(s),): float(beat.images.get(s, 0)) for s in ImageStatus}
    yield _gauge("mhs_images", "Image definitions", ("status",), images)
    yield _gauge(
        "mhs_image_check_oldest_age_seconds", "How long the longest image check goes on", (),
        {(): age(beat.oldest_check)},
    )  # fmt: skip


def _nodes(nodes: Sequence[Mapping[str, Any]]) -> Metric:
    counts: Counter[tuple[str, ...]] = Counter()
    for node in nodes:
        kind = str(node.get("instance_type") or "none")
        counts[kind if kind == "none" else bounded(kind), "alive" if node["alive"] else "dead"] += 1
    return _gauge("mhs_nodes", "Nodes that Ray knows", ("instance_type", "state"), counts)


def _gauge(name: str, words: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    """Return a family. values: label values (a tuple) → value."""
    family = GaugeMetricFamily(name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _free(folder: str) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
