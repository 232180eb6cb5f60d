"""What it takes to run an ended job again elsewhere: its image, variables, slide and results as they were recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.models import ImageRef, Job, Principal
from mhs_ray.ports import RegistryCredential
from mhs_ray.services.core import Core
from mhs_ray.store.sql.containers import open_env


@dataclass(frozen=True, slots=True)
class ReplayFacts:
    """An ended job. env: values of secret ones are never told. slide_sha256: of each file as the node fetched it, ()
    where the job never got so far. slide_url: signed, of a slide whose bytes are ours; slide_path: of one by path."""

    job: Job
    image: ImageRef
    pull: RegistryCredential = field(repr=False)
    host: str
    time_limit_s: int
    env: tuple[EnvVar, ...] = field(repr=False)
    slide_name: str
    slide_sha256: tuple[str, ...]
    slide_url: str | None = field(repr=False)
    slide_path: str | None
    results_digest: str | None


def replay_facts(core: Core, who: Principal, job_id: int) -> ReplayFacts:
    """Return what was recorded of a job. Raises NotFoundError, ConflictError while it has not ended."""
    job = core.jobs.jobs.get(who.company_id, job_id)
    if not job.state.is_terminal:
        raise ConflictError(f"job {job_id} is {job.state}; wait for its end, or cancel it")
    row = core.jobs.jobs.row(job_id)
    ref, _ = core.images.images.reference(row.image_version_id)
    location = core.scans.scans.location(job.scan_id)
    ours = "key" in location or "s3" in location
    [url] = core.scans.sources(job.scan_id)[0] if ours else (None,)
    result = core.jobs.results.of_job(who.company_id, job_id)
    env = open_env(core.db, row.env)
    return ReplayFacts(
        job=job,
        image=ref,
        pull=core.registry.pull_credential(ref),
        host=row.host,
        time_limit_s=row.time_limit_s,
        env=tuple(EnvVar(v.name, "" if v.secret else v.value, v.secret) for v in env),
        slide_name=row.scan_name,
        slide_sha256=tuple(job.resources.get("slide_sha256") or ()),
        slide_url=url,
        slide_path=location.get("path"),
        results_digest=result.digest if result is not None else None,
    )
