"""Against cold starts: who fetches what before a job asks, where a job starts best, which nodes are kept warm.

All of it is help and none of it truth: it is kept in memory, made anew after a crash, and whatever fails here is a
slower start and nothing else. The decisions are in `locality`, `prefetch` and `schedule`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final, Protocol

import sqlalchemy as sa

from mhs_ray.attempt.ahead import Errand, ImageToPull, Report
from mhs_ray.attempt.image_room import RemovedImage
from mhs_ray.attempt.order import Holding
from mhs_ray.dispatch.dispatcher import AttemptKey
from mhs_ray.dispatch.locality import Need, NodeView, preferred
from mhs_ray.dispatch.orders import slide_source
from mhs_ray.dispatch.prefetch import LikelyImage, Running, plan_pulls, plan_slides
from mhs_ray.dispatch.schedule import nodes_wanted
from mhs_ray.domain.models import ImageRef, Job
from mhs_ray.domain.states import JobState
from mhs_ray.services.core import Core
from mhs_ray.store.sql.ahead import likely_images, needs, unpacked_bytes

log = logging.getLogger(__name__)

_VIEW_S: Final = 1.0  # so old may be what is known of the nodes; attempts are counted anew each time
_REPORT_S: Final = 300.0
_WARM_S: Final = 60.0  # the control service may have been restarted and forgotten what was asked
_MOST: Final = 64  # jobs that are looked at ahead
_UNPACKED: Final = 3  # an image on disk beside its compressed size, where nobody looked
_KEPT_FOR: Final = 256  # jobs whose images stay where they are
_SLIDE_BYTES: Final = 1 << 30  # of a slide whose size nobody knows yet
_URL_LEFT: Final = timedelta(minutes=2)  # a URL that ends sooner is left to the job, which says so to a person


class Nodes(Protocol):
    """The nodes of the cluster, as far as fetching ahead needs them."""

    def views(self) -> list[NodeView]:
        """Return the nodes that are alive and have GPUs."""

    def send(self, node_id: str, errand: Errand, done: Callable[[Report | None], None]) -> None:
        """Have a node run an errand; `done` is told its report from any thread, None when there was none."""

    def keep_warm(self, wanted: Mapping[str, int]) -> None:
        """Ask the autoscaler for so many nodes of each type, whatever the jobs ask for."""


class Ahead:
    """Safe to call from several threads.

    on_report: called when a node did an errand, so that `look` comes soon. on_removed: told of each image that a node
    removed meanwhile.
    """

    def __init__(
        self,
        core: Core,
        nodes: Nodes,
        on_report: Callable[[], None] = lambda: None,
        on_removed: Callable[[RemovedImage], None] = lambda _removed: None,
    ) -> None:
        self._core, self._nodes, self._on_report, self._on_removed = core, nodes, on_report, on_removed
        self._settings = core.settings.cluster
        self._lock = threading.RLock()
        self._held: dict[str, Holding] = {}
        self._reported: dict[str, float] = {}
        self._keep: tuple[float, dict[str, frozenset[str]]] = (-_VIEW_S, {})  # digests that stay, by the nodes' type
        self._pulls: set[tuple[str, str]] = set()  # (node, digest) that were asked for
        self._fetches: dict[int, str] = {}  # job → the node that was asked to fetch for it
        self._next: dict[int, tuple[Need, datetime | None]] = {}  # jobs that start next, with until when they can
        self._lanes: set[tuple[str, str]] = set()  # (node, lane) in which an errand is under way
        self._pending: dict[AttemptKey, tuple[str, str | None]] = {}  # launched: (instance type, node that it prefers)
        self._seen: tuple[float, list[NodeView]] = (-_VIEW_S, [])
        self._warm: tuple[float, dict[str, int]] = (-_WARM_S, {})

    # ------------------------------------------------------------ where a job starts best

    def prefer(self, job: Job) -> str | None:
        """Return the node that `job`, which is about to be launched, had best start on. Never raises."""
        key = (job.id, job.attempt)
        try:
            node = self._prefer(job)
        except Exception:
            log.exception("job %s: where it starts best is not known", job.id)
            node = None
        with self._lock:
            self._pending[key] = (job.instance_type, node)
        return node

    def started(self, key: AttemptKey, node_id: str) -> None:
        """Take in that an attempt's container runs, hence that its node holds its image and its slide."""
        for need in self._needs([key[0]]):
            with self._lock:
                has = Holding(frozenset({need.image.digest}), frozenset({need.slide.key}))
                self._held[node_id] = self._held.get(node_id, Holding()) | has

    def _prefer(self, job: Job) -> str | None:
        fitting = [n for n in self._views() if n.takes(job.instance_type)]
        if len(fitting) < 2:
            return None
        nodes, waiting, _ = self._standing(fitting, but=(job.id, job.attempt))
        (need,) = self._needs([job.id])
        with self._lock:
            return preferred(need, nodes, self._held, waiting)

    def _standing(
        self, nodes: list[NodeView], but: AttemptKey | None = None
    ) -> tuple[list[NodeView], int, list[Running]]:
        """Return nodes with the GPUs that are free by the rows, how many attempts wait without a place, what runs.

        Ray's own count lags behind: an attempt just launched holds no GPU there yet.
        """
        active = self._core.jobs.jobs.active()
        waiting_keys = {(j.id, j.attempt) for j in active if j.state is JobState.WAITING}
        taken: dict[str, int] = {}
        running = []
        by_name = {n.id[:8]: n.id for n in nodes}
        for job in active:
            node = by_name.get((job.node or "").rpartition("(")[2][:8])
            if node is not None and job.state is not JobState.WAITING:
                taken[node] = taken.get(node, 0) + 1
                running.append(Running(node, job.started_at))
        waiting = 0
        with self._lock:
            self._pending = {k: v for k, v in self._pending.items() if k in waiting_keys}
            for key, (kind, node) in self._pending.items():
                if key == but:
                    continue
                if node is not None:
                    taken[node] = taken.get(node, 0) + 1
                elif any(n.takes(kind) for n in nodes):
                    waiting += 1
        views = [
            NodeView(n.id, n.instance_type, n.gpus, max(0, min(n.free, n.gpus - taken.get(n.id, 0)))) for n in nodes
        ]
        return views, waiting, running

    # ------------------------------------------------------------ what is fetched ahead

    def look(self) -> None:
        """Send nodes on the errands that pay now, and ask for the nodes that are to be warm."""
        self._keep_warm()
        nodes = self._views()
        alive = {n.id for n in nodes}
        with self._lock:
            self._held = {n: h for n, h in self._held.items() if n in alive}
            self._reported = {n: at for n, at in self._reported.items() if n in alive}
            self._pulls = {(n, digest) for n, digest in self._pulls if n in alive}
            self._lanes = {(n, lane) for n, lane in self._lanes if n in alive}
        for node in nodes:
            if self._report_is_due(node):
                self._send(node, "report", Errand("say what is there"))
        # A node that has not yet said what it holds is asked for nothing: it may hold it.
        known = [n for n in nodes if n.id in self._reported]
        if known and self._settings.prefetch:
            self._fetch_for_next(known)
        if known and self._settings.prepull:
            self._pull_likely(known)

    def _report_is_due(self, node: NodeView) -> bool:
        """Say whether to ask a node what it holds; one of a cluster that is idle is left so: a question ends that."""
        at = self._reported.get(node.id)
        if at is None:
            return True
        busy = node.free < node.gpus or self._settings.placement == "single"
        return busy and monotonic() - at >= _REPORT_S

    def _kept(self, node: NodeView) -> frozenset[str]:
        """Return the digests that must stay on a node: of what comes next, and likely comes, for its type.

        What runs there stays by itself.
        """
        at, kept = self._keep
        if monotonic() - at >= _VIEW_S:
            at, kept = monotonic(), {}
        if node.instance_type not in kept:
            ids = self._core.jobs.jobs.upcoming(_KEPT_FOR, datetime.now(UTC))
            digests = {r.digest for r in needs(self._core.db, ids) if node.takes(r.instance_type)}
            likely = (r.digest for r in likely_images(self._core.db) if node.takes(r.instance_type))
            digests |= set(list(dict.fromkeys(likely))[: self._settings.prepull])
            kept = {**kept, node.instance_type: frozenset(digests)}
            self._keep = (at, kept)
        return kept[node.instance_type]

    def _fetch_for_next(self, nodes: list[NodeView]) -> None:
        views, _, running = self._standing(nodes)
        if not running:
            return
        now = datetime.now(UTC)
        ids = self._core.jobs.jobs.upcoming(min(_MOST, len(running) + sum(n.free for n in views)), now)
        # Each is looked up once: where a slide is may be a question to the object store.
        fresh = needs(self._core.db, [i for i in ids if i not in self._next])
        looked_up = self._next | {r.id: (self._need(r), r.usable_until) for r in fresh}
        self._next = {i: looked_up[i] for i in ids if i in looked_up}
        with self._lock:
            self._fetches = {j: n for j, n in self._fetches.items() if j in self._next}
            held, asked = dict(self._held), dict(self._fetches)
        by_id = {n.id: n for n in views}
        for node_id, need in plan_slides(views, [n for n, _ in self._next.values()], running, held, asked):
            usable_until = self._next[need.job_id][1]
            lasts = usable_until is None or usable_until > now + _URL_LEFT
            image = self._to_pull(need.image, need.image_bytes)
            errand = Errand(f"fetch ahead · job {need.job_id}", image, need.slide if lasts else None)
            if self._send(by_id[node_id], "slide", errand):
                self._fetches[need.job_id] = node_id

    def _pull_likely(self, nodes: list[NodeView]) -> None:
        likely = [
            LikelyImage(r.instance_type, ImageRef(r.registry, r.repository, r.digest), r.size_bytes, r.version_id)
            for r in likely_images(self._core.db)
        ]
        with self._lock:
            held, asked = dict(self._held), set(self._pulls)
        by_id = {n.id: n for n in nodes}
        for node_id, wanted in plan_pulls(nodes, likely, held, asked, self._settings.prepull):
            if (node_id, "image") in self._lanes:
                continue
            errand = Errand(f"pull ahead · {wanted.image.digest[:19]}", self._to_pull(wanted.image, wanted.size_bytes))
            if self._send(by_id[node_id], "image", errand):
                self._pulls.add((node_id, wanted.image.digest))

    def _send(self, node: NodeView, lane: str, errand: Errand) -> bool:
        """Send an errand unless one of its kind is under way there; returns whether it was sent."""
        node_id = node.id
        with self._lock:
            if (node_id, lane) in self._lanes:
                return False
            self._lanes.add((node_id, lane))
        errand = replace(errand, keep=self._kept(node))

        def done(report: Report | None) -> None:
            with self._lock:
                self._lanes.discard((node_id, lane))
                self._reported[node_id] = monotonic()
                if report is not None:
                    self._held[node_id] = report.holding
            for gone in report.removed if report else ():
                log.info("node %s removed image %s (%s)", node_id[:8], gone.ref, gone.why)
                self._on_removed(gone)
            for fault in report.faults if report else ("the node gave no report",):
                log.info("%s on node %s: %s", errand.what, node_id[:8], fault)
            self._on_report()

        try:
            self._nodes.send(node_id, errand, done)
        except Exception:
            log.exception("%s: node %s could not be asked", errand.what, node_id[:8])
            with self._lock:
                self._lanes.discard((node_id, lane))
            return False
        return True

    def _keep_warm(self) -> None:
        if not self._settings.warm:
            return
        wanted = nodes_wanted(self._settings.warm, datetime.now(UTC))
        at, before = self._warm
        if wanted != before or monotonic() - at >= _WARM_S:
            self._nodes.keep_warm(wanted)
            self._warm = (monotonic(), wanted)

    # ------------------------------------------------------------ rows and nodes

    def _views(self) -> list[NodeView]:
        at, views = self._seen
        if monotonic() - at >= _VIEW_S:
            views = self._nodes.views()
            self._seen = (monotonic(), views)
        return views

    def _needs(self, job_ids: list[int]) -> list[Need]:
        return [self._need(row) for row in needs(self._core.db, job_ids)]

    def _need(self, row: sa.Row[Any]) -> Need:
        return Need(
            job_id=row.id,
            instance_type=row.instance_type,
            image=ImageRef(row.registry, row.repository, row.digest),
            image_bytes=row.image_bytes,
            slide=slide_source(self._core, row),
            slide_bytes=row.slide_bytes or _SLIDE_BYTES,
        )

    def _to_pull(self, image: ImageRef, compressed_bytes: int) -> ImageToPull:
        unpacked = unpacked_bytes(self._core.db, image.digest) or _UNPACKED * compressed_bytes
        return ImageToPull(image, compressed_bytes + unpacked, self._core.registry.pull_credential(image))
