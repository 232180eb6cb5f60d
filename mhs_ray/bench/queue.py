"""The queue: how fast jobs are claimed and finished, beside procrastinate on the same PostgreSQL in the same run."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._postgres import postgres
from mhs_ray.bench._stage import stage
from mhs_ray.dispatch.dispatcher import BATCH
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Job
from mhs_ray.domain.settings import Settings
from mhs_ray.domain.states import JobEvent, JobState
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.clients import Clients
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.jobs import Jobs
from mhs_ray.store.sql.secrets import Vault

_SHORT, _LONG = 1_000, 100_000
_MEASURED: Final = 600  # jobs of one measurement
_ROUNDS: Final = 5
_WORKERS: Final = 16
_LATENCIES: Final = 20
_END: Final = Failure(FailureCode.EXIT_CODE, "measured", "nothing to do", "", 1)


class _Queue:
    """Rows of one company, made without the way through a submission."""

    def __init__(self, db: Database) -> None:
        self.db, self.jobs = db, Jobs(db)
        self._run = 0
        company = Clients(db).ensure_company("bench")
        by = {"company_id": company, "created_by": "bench"}
        digest = "sha256:" + "0" * 64
        with db.write() as conn:

            def row(table: sa.Table, **values: Any) -> int:
                key = conn.execute(sa.insert(table).values(**values)).inserted_primary_key
                assert key is not None
                return int(key[0])

            image = row(t.images, name="bench", status="uploaded", **by)
            version = row(
                t.image_versions, company_id=company, image_id=image, number=1, registry="r", repository="q",
                digest=digest, size_bytes=1, details={},
            )  # fmt: skip
            sealed = db.vault.seal([])
            container = row(
                t.containers, name="bench", image_id=image, instance_type="g4dn.xlarge", env=sealed, time_limit_s=60,
                **by,
            )  # fmt: skip
            algorithm = row(t.algorithms, name="bench", provider="x", container_id=container, **by)
            scan = row(t.scans, number=1, name="s", status="ready", source="url", location=sealed, **by)
            task = row(
                t.tasks, number=1, algorithm_id=algorithm, algorithm_name="bench", origin="local", host="h",
                priority="clinical", **by,
            )  # fmt: skip
        self._values: dict[str, Any] = {
            **by, "task_id": task, "scan_id": scan, "container_id": container, "container_name": "bench",
            "image_version_id": version, "image_digest": digest, "instance_type": "g4dn.xlarge", "time_limit_s": 60,
            "env": sealed, "slide": sealed, "priority": 0, "state": JobState.QUEUED,
        }  # fmt: skip

    def fill(self, count: int) -> None:
        """Queue jobs until `count` wait."""
        with self.db.write() as conn:
            waiting = conn.execute(sa.select(sa.func.count()).where(t.jobs.c.state == JobState.QUEUED)).scalar_one()
        missing = count - waiting
        while missing > 0:
            part = min(missing, 5000)
            rows = [{**self._values, "run": self._run + i} for i in range(part)]
            with self.db.write() as conn:
                conn.execute(sa.insert(t.jobs), rows)
            self._run += part
            missing -= part
        if not self.db.is_sqlite:
            with self.db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.execute(sa.text("VACUUM ANALYZE jobs"))

    def work(self, count: int, events: Sequence[JobEvent]) -> float:
        """Take `count` jobs through `events` in threads, claiming more meanwhile; return jobs per second."""

        def finish(job: Job) -> None:
            for event in events:
                failure = _END if event is JobEvent.FAILED else None
                self.jobs.transition(job.id, event, attempt=job.attempt, failure=failure)

        left, under_way, began = count, set[Future[None]](), time.monotonic()
        with ThreadPoolExecutor(_WORKERS) as pool:
            while left or under_way:
                if left and len(under_way) <= _WORKERS:
                    claimed = self.jobs.claim(min(BATCH, left), 10**9, datetime.now(UTC))
                    left -= len(claimed)
                    under_way |= {pool.submit(finish, job) for job in claimed}
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for each in done:
                    each.result()
        return count / (time.monotonic() - began)


_FINISH: Final = (JobEvent.FAILED,)
_LIFE: Final = (JobEvent.PLACED, JobEvent.STARTED, JobEvent.EXITED, JobEvent.SUCCEEDED)


def _measure(
    short_db: Database, long_db: Database, say: Say, peer: Callable[[], float] | None = None
) -> dict[str, Any]:
    """Measure short queue, long queue and the peer in turn, so that what else the machine does meets all of them."""
    short_queue, long_queue = (_Queue(db) for db in (short_db, long_db))
    say(f"filling a queue with {_LONG} jobs")
    for queue, size in ((short_queue, _SHORT), (long_queue, _LONG)):
        queue.fill(size + _MEASURED)
        queue.work(_MEASURED, _FINISH)  # warm
    short, long, peers = [], [], []
    for _ in range(_ROUNDS):
        short_queue.fill(_SHORT + _MEASURED)
        short.append(round(short_queue.work(_MEASURED, _FINISH), 1))
        if peer is not None:
            peers.append(round(peer(), 1))
        long_queue.fill(_LONG + _MEASURED)
        long.append(round(long_queue.work(_MEASURED, _FINISH), 1))
        say(
            f"jobs/s with {_SHORT} queued {short[-1]}, with {_LONG} {long[-1]}"
            + (f", peer {peers[-1]}" if peers else "")
        )
    found: dict[str, Any] = {
        "jobs_per_s": statistics.median(short),
        "jobs_per_s_100k": statistics.median(long),
        "ratio_100k_to_1k": round(statistics.median(long) / statistics.median(short), 3),
        # Five transitions, each a durable transaction of its own.
        "whole_life_jobs_per_s": round(short_queue.work(_MEASURED // 2, _LIFE), 1),
        "runs": {"1k": short, "100k": long},
    }
    if peers:
        found["procrastinate_jobs_per_s"] = statistics.median(peers)
        found["ratio_to_procrastinate"] = round(statistics.median(short) / statistics.median(peers), 3)
        found["runs"]["procrastinate"] = peers
    return found


class _Procrastinate:
    """The peer with as many workers, on a database of its own of the same server."""

    def __init__(self, url: sa.URL) -> None:
        import procrastinate
        from procrastinate import manager

        self._connector = procrastinate.PsycopgConnector(
            kwargs={"host": url.query["host"], "user": url.username, "dbname": url.database},
            min_size=_WORKERS,
            max_size=_WORKERS,
        )
        self._app = procrastinate.App(connector=self._connector)
        self._task = self._app.task(name="bench")(_nothing)
        self._manager = manager.JobManager(self._connector)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._open())
        self()  # warm

    def __call__(self) -> float:
        """Return its jobs per second for fetch and finish with a short queue."""
        return self._loop.run_until_complete(self._round())

    def close(self) -> None:
        """Give back its connections."""
        self._loop.run_until_complete(self._app.close_async())
        self._loop.close()

    async def _open(self) -> None:
        await self._app.open_async()
        await self._app.schema_manager.apply_schema_async()
        self._workers = [await self._manager.register_worker() for _ in range(_WORKERS)]

    async def _round(self) -> float:
        await self._connector.execute_query_async("DELETE FROM procrastinate_jobs WHERE status = 'todo'")
        await self._task.batch_defer_async(*[{} for _ in range(_SHORT + _MEASURED)])
        await self._connector.execute_query_async("ANALYZE procrastinate_jobs")
        began = time.monotonic()
        await asyncio.gather(*(self._work(_MEASURED // _WORKERS, w) for w in self._workers))
        return _MEASURED / (time.monotonic() - began)

    async def _work(self, count: int, worker: int) -> None:
        from procrastinate.jobs import Status

        for _ in range(count):
            job = await self._manager.fetch_job(queues=None, worker_id=worker)
            assert job is not None
            await self._manager.finish_job(job, Status.SUCCEEDED, delete_job=False)


def _nothing() -> None:
    """The peer's task, which is never run."""


def _peer(url: sa.URL, say: Say) -> _Procrastinate | None:
    try:
        return _Procrastinate(url)
    except ImportError:
        say("procrastinate is not installed: it is part of the development dependencies")
        return None


def _latencies(settings: Settings, say: Say) -> list[float]:
    """Return milliseconds from a submission's commit to the decision to start it, on an idle platform."""
    found = []
    with stage(settings, say) as platform:
        for _ in range(_LATENCIES):
            job = platform.client.submit(algorithm_id=platform.algorithm_id, scan_ids=[platform.scan_id])["job_ids"][0]
            platform.client.wait(job)
            at = {e["event"]: datetime.fromisoformat(e["at"]) for e in platform.client.job_events(job)}
            found.append((at["dispatched"] - at["submitted"]).total_seconds() * 1000)
    return found


def _on(urls: Sequence[str], vault: Vault, say: Say, peer: Callable[[], float] | None) -> dict[str, Any]:
    short, long = (Database(url, vault) for url in urls)
    try:
        for db in (short, long):
            db.migrate()
        return _measure(short, long, say, peer)
    finally:
        short.close()
        long.close()


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Measure both databases, the peer, and the latency of a start."""
    vault = Vault([Vault.new_key()])
    with postgres() as server:
        url = sa.make_url(server)
        names = ("short_queue", "long_queue", "peer")
        with sa.create_engine(
            url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        ).connect() as admin:
            for name in names:
                admin.execute(sa.text(f"CREATE DATABASE {name}"))
        peer = _peer(url.set(database="peer"), say)
        urls = [url.set(database=name).render_as_string() for name in names[:2]]
        on_postgresql = _on(urls, vault, say, peer)
        if peer is not None:
            peer.close()
    folder = Path(tempfile.mkdtemp(prefix="mhs-bench-", dir="/var/tmp"))
    try:
        on_sqlite = _on([f"sqlite:///{folder}/{name}.db" for name in ("short", "long")], vault, say, None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    latencies = _latencies(settings, say)
    return {
        "postgresql": on_postgresql,
        "sqlite": on_sqlite,
        "dispatch_latency_ms_median": round(statistics.median(latencies), 2),
        "dispatch_latency_ms": [round(x, 2) for x in sorted(latencies)],
    }


BENCHMARK = Benchmark(
    "queue",
    "claims and finishes per second on PostgreSQL (beside procrastinate) and SQLite, and the wait for a start",
    run,
)
