"""Making the order for an attempt: fresh URLs, a fresh token, the environment as it was when the task was made."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from mhs_ray.attempt.order import AttemptOrder
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Job
from mhs_ray.services.core import Core
from mhs_ray.slides.cache import SlideSource
from mhs_ray.store.sql.containers import open_env
from mhs_ray.store.sql.tasks import urls_end

_TOKEN_SLACK = timedelta(hours=2)  # pull, prepare and clock skew; the gateway asks whether the attempt lives anyway


def make_order(core: Core, job: Job) -> AttemptOrder:
    """Return what the node of the job's newest attempt needs."""
    row = core.jobs.jobs.row(job.id)
    ref, details = core.images.images.reference(row.image_version_id)
    env = open_env(core.db, row.env)
    life = timedelta(seconds=row.time_limit_s) + _TOKEN_SLACK
    who = AttemptIdentity(job.company_id, row.task_number, job.id, job.attempt)
    return AttemptOrder(
        platform=core.keys.platform,
        job_id=job.id,
        attempt=job.attempt,
        task_number=row.task_number,
        scan_number=row.scan_number,
        label=job_label(job),
        image=ref,
        pull=core.registry.pull_credential(ref),
        instance_type=row.instance_type,
        time_limit_s=row.time_limit_s,
        env={v.name: v.value for v in env},
        secrets=tuple(v.value for v in env if v.secret),
        host=row.host,
        jwt_token=core.tokens.for_attempt(who, life),
        slide=slide_source(core, row),
        slide_name=row.scan_name,
        gateway_url=core.endpoints.api_url,
        ca_bundles=tuple(details.get("ca_bundles", ())),
        company_id=job.company_id,
        container_id=job.container_id,
        image_bytes=int(details.get("uncompressed_size") or 0),
    )


def slide_source(core: Core, row: sa.Row[Any]) -> SlideSource:
    """Return where a node gets the slide of a job's `row`: the URLs that came with it, else fresh ones of its scan."""
    urls = tuple(core.db.vault.open(row.slide).get("urls", ()))
    return SlideSource(urls) if urls else SlideSource(*core.scans.sources(row.scan_id))


def why_expired(core: Core, row: sa.Row[Any], now: datetime) -> Failure:
    """Return the failure card of a queued job that is past its `usable_until`."""
    waited = "while the job was waiting" if row.created_at < row.usable_until else "before the job came"
    end = f"{row.usable_until:%Y-%m-%d %H:%M:%S} UTC"
    slide_end = urls_end(core.db.vault.open(row.slide).get("urls", ()))
    if slide_end is not None and slide_end <= now:
        return Failure(
            FailureCode.SLIDE_EXPIRED,
            f"the slide's URL ended at {end}, {waited}",
            "submit the task again with fresh URLs, or let them live longer",
        )
    return Failure(
        FailureCode.TOKEN_EXPIRED,
        f"Techcyte's token for this task ended at {end}, {waited}, so no result could be delivered",
        "have Techcyte ask for the task again, which brings a new token",
    )


def job_label(job: Job) -> str:
    """Return what people know a job by: ``job 42 · scan 8946136 · My GPU Container``."""
    return f"job {job.id} · scan {job.scan_number} · {job.container_name}"
