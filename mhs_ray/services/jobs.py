"""Jobs as people see them: lists, stories, logs, results; cancel and rerun."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import BinaryIO, Final

from mhs_ray.attempt.logbook import LogLine, read_log
from mhs_ray.domain.errors import NotFoundError
from mhs_ray.domain.models import Job, Principal
from mhs_ray.domain.states import JobEvent
from mhs_ray.ports import BlobStore
from mhs_ray.results.export import write_geojson
from mhs_ray.results.features import ExportItem
from mhs_ray.results.geojson import GeoJson
from mhs_ray.results.parquet import write_parquet
from mhs_ray.store.sql.jobs import Jobs
from mhs_ray.store.sql.results import Results, StoredResult

DEBUG_LIFE: Final = timedelta(hours=1)


def debug_key(job_id: int, attempt: int) -> str:
    """Return the blob key of the debug file that an attempt uploaded."""
    return f"jobs/{job_id}/attempts/{attempt}/debug"


class JobService:
    """wake: tells the dispatcher that there is something to do; it must not block."""

    def __init__(self, jobs: Jobs, results: Results, blobs: BlobStore, wake: Callable[[], None]) -> None:
        self.jobs = jobs
        self.results = results
        self._blobs = blobs
        self._wake = wake

    def cancel(self, who: Principal, job_id: int) -> Job:
        """End a job that has not ended; its container is stopped. Raises NotFoundError, ConflictError."""
        self.jobs.get(who.company_id, job_id)
        self.jobs.transition(job_id, JobEvent.CANCELLED, cause=f"cancelled by {who.name}")
        self._wake()
        return self.jobs.get(who.company_id, job_id)

    def rerun(self, who: Principal, job_id: int) -> Job:
        """Queue an ended job anew; returns the new job."""
        new_id = self.jobs.rerun(who.company_id, job_id, who.name)
        self._wake()
        return self.jobs.get(who.company_id, new_id)

    def log(self, who: Principal, job_id: int, attempt: int | None, start: int = 0) -> Iterator[LogLine]:
        """Yield the stored lines of an attempt (None: the newest) from line `start` on."""
        job = self.jobs.get(who.company_id, job_id)
        return self.log_of(job, attempt, start)

    def log_of(self, job: Job, attempt: int | None, start: int = 0) -> Iterator[LogLine]:
        """`log` of a job that was looked up already."""
        if attempt is not None and not 1 <= attempt <= job.attempt:
            raise NotFoundError("attempt", f"{attempt} of job {job.id}")
        return read_log(self._blobs, job.id, attempt or job.attempt, start)

    def result(self, who: Principal, job_id: int) -> StoredResult:
        """Return the job's result. Raises NotFoundError while there is none."""
        found = self.results.of_job(who.company_id, job_id)
        if found is None:
            raise NotFoundError("result of job", job_id)
        return found

    def geojson(self, result: StoredResult) -> BinaryIO | None:
        """Return the FeatureCollection as it was posted, None when none was."""
        return self._blobs.open(result.geojson_key) if result.geojson_key else None

    def export(self, results: Iterable[StoredResult], kind: str, out: BinaryIO) -> int:
        """Write the features of `results` as ``geojson`` or ``parquet``; returns their number."""
        items = (self._item(r) for r in results)
        return write_geojson(items, out) if kind == "geojson" else write_parquet(items, out)

    def debug_url(self, who: Principal, job_id: int, attempt: int | None) -> str:
        """Return a URL of the debug file that the container uploaded. Raises NotFoundError."""
        job = self.jobs.get(who.company_id, job_id)
        key = debug_key(job_id, attempt or job.attempt)
        if self._blobs.stat(key) is None:
            raise NotFoundError("debug file of job", job_id)
        return self._blobs.sign(key, "GET", DEBUG_LIFE, f"job-{job_id}-debug.zip")

    def _item(self, result: StoredResult) -> ExportItem:
        geojson = None
        if result.geojson_key:
            with self._blobs.open(result.geojson_key) as stored:
                geojson = GeoJson.read(stored.read())
        return ExportItem(
            task_number=result.task_number,
            scan_number=result.scan_number,
            job_id=result.job_id,
            geojson=geojson,
            report=(result.workflow or {}).get("report"),
        )
