"""An ended job as it was recorded, for `mhs replay`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from api.audited import AuditedRoute
from api.deps import CoreDep, IdPath, WriterDep, problems
from api.schemas.replay import ReplayOut
from mhs_ray.services.replay import replay_facts

router = APIRouter(route_class=AuditedRoute, tags=["jobs"], responses=problems())


@router.get(
    "/v1/jobs/{job_id}/replay", summary="Get what a job ran", responses=problems(404, 409, 502),
    response_model=ReplayOut,
)  # fmt: skip
def get_replay(core: CoreDep, who: WriterDep, job_id: IdPath, response: Response) -> dict[str, Any]:
    """Image by digest with a login to pull it, variables, and the slide with its hash, as recorded. Of ended jobs."""
    facts = replay_facts(core, who, job_id)
    response.headers["Cache-Control"] = "no-store"  # it holds a credential
    job, image = facts.job, facts.image
    return {
        "job_id": job.id, "state": job.state, "failure_code": job.failure.code if job.failure else None,
        "task_id": str(job.task_number), "scan_id": str(job.scan_number), "host": facts.host,
        "instance_type": job.instance_type, "time_limit_s": facts.time_limit_s,
        "image": {
            "reference": str(image), "registry": image.registry, "repository": image.repository,
            "digest": image.digest, "username": facts.pull.username, "password": facts.pull.password,
            "tls": facts.pull.tls,
        },
        "env": [{"name": v.name, "value": None if v.secret else v.value, "secret": v.secret} for v in facts.env],
        "slide": {
            "name": facts.slide_name, "sha256": list(facts.slide_sha256), "url": facts.slide_url,
            "path": facts.slide_path,
        },
        "results_digest": facts.results_digest,
    }  # fmt: skip
