"""The queue: how fast jobs are claimed and finished, beside procrastinate on the same PostgreSQL in the same run."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._postgres import postgres
from mhs_ray.bench._stage import stage
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
_WORKERS: Final = 4
_BATCH: Final = 32
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
        """Claim `count` jobs in batches and take each through `events` in several threads; return jobs per second."""

        def finish(job: Job) -> None:
            for event in events:
                failure = _END if event is JobEvent.FAILED else None
                self.jobs.transition(job.id, event, attempt=job.attempt, failure=failure)

        done, began = 0, time.monotonic()
        with ThreadPoolExecutor(_WORKERS) as pool:
            while done < count:
                claimed = self.jobs.claim(min(_BATCH, count - done), 10**9, datetime.now(UTC))
                list(pool.map(finish, claimed))
                done += len(claimed)
        return count / (time.monotonic() - began)


_FINISH: Final = (JobEvent.FAILED,)
_LIFE: Final = (JobEvent.PLACED, JobEvent.STARTED, JobEvent.EXITED, JobEvent.SUCCEEDED)


def _measure(db: Database, say: Say) -> dict[str, Any]:
    """Measure short and long queue in turn, so that what else the machine does meets both."""
    db.migrate()
    queue = _Queue(db)
    queue.fill(_SHORT + _MEASURED)
    queue.work(_MEASURED, _FINISH)  # warm
    short = []
    for _ in range(_ROUNDS):
        queue.fill(_SHORT + _MEASURED)
        short.append(queue.work(_MEASURED, _FINISH))
    life = queue.work(_MEASURED // 2, _LIFE)
    say(f"{statistics.median(short):.0f} jobs/s with {_SHORT} queued; now with {_LONG}")
    long = []
    for _ in range(_ROUNDS):
        queue.fill(_LONG + _MEASURED)
        long.append(queue.work(_MEASURED, _FINISH))
    say(f"{statistics.median(long):.0f} jobs/s with {_LONG} queued")
    return {
        "jobs_per_s": round(statistics.median(short), 1),
        "jobs_per_s_100k": round(statistics.median(long), 1),
        "ratio_100k_to_1k": round(statistics.median(long) / statistics.median(short), 3),
        "whole_life_jobs_per_s": round(life, 1),  # five transitions, each its own durable transaction
        "runs": {"1k": [round(r, 1) for r in short], "100k": [round(r, 1) for r in long]},
    }


async def _procrastinate(url: sa.URL, say: Say) -> float | None:
    """Return procrastinate's jobs per second for fetch and finish with as many workers; None where it is missing."""
    try:
        import procrastinate
        from procrastinate import jobs as kinds
        from procrastinate import manager
    except ImportError:
        say("procrastinate is not installed: it is part of the development dependencies")
        return None
    connector = procrastinate.PsycopgConnector(
        kwargs={"host": url.query["host"], "user": url.username, "dbname": url.database},
        min_size=_WORKERS,
        max_size=_WORKERS,
    )
    app = procrastinate.App(connector=connector)

    @app.task(name="bench")  # type: ignore[misc, unused-ignore]
    def bench() -> None: ...

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        rates = []
        work = manager.JobManager(connector)
        workers = [await work.register_worker() for _ in range(_WORKERS)]
        for _ in range(_ROUNDS + 1):
            missing = _SHORT + _MEASURED
            await bench.batch_defer_async(*[{} for _ in range(missing)])
            await connector.execute_query_async("ANALYZE procrastinate_jobs")

            async def one(count: int, worker: int) -> None:
                for _ in range(count):
                    job = await work.fetch_job(queues=None, worker_id=worker)
                    assert job is not None
                    await work.finish_job(job, kinds.Status.SUCCEEDED, delete_job=False)

            began = time.monotonic()
            await asyncio.gather(*(one(_MEASURED // _WORKERS, w) for w in workers))
            rates.append(_MEASURED / (time.monotonic() - began))
            await connector.execute_query_async("DELETE FROM procrastinate_jobs WHERE status = 'todo'")
    return statistics.median(rates[1:])


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


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Measure both databases, the peer, and the latency of a start."""
    vault = Vault([Vault.new_key()])
    with postgres() as url:
        db = Database(url, vault)
        on_postgresql = _measure(db, say)
        peer = asyncio.run(_procrastinate(db.engine.url, say))
        db.close()
    on_postgresql["procrastinate_jobs_per_s"] = None if peer is None else round(peer, 1)
    on_postgresql["ratio_to_procrastinate"] = None if peer is None else round(on_postgresql["jobs_per_s"] / peer, 3)
    folder = Path(tempfile.mkdtemp(prefix="mhs-bench-", dir="/var/tmp"))
    try:
        db = Database(f"sqlite:///{folder}/bench.db", vault)
        on_sqlite = _measure(db, say)
        db.close()
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
