"""Wire types of what it takes to run an ended job again elsewhere."""

from __future__ import annotations

from pydantic import Field

from api.schemas.base import Wire


class ReplayVariable(Wire):
    """A variable as the job had it."""

    name: str
    value: str | None = Field(None, description="null for a secret one, which is never returned")
    secret: bool


class ReplaySlide(Wire):
    """The slide that the job ran on."""

    name: str
    sha256: list[str] = Field(description="of each file as the node fetched it; empty if the job never got so far")
    url: str | None = Field(None, description="signed, where the slide's bytes are kept here")
    path: str | None = Field(None, description="where the slide was registered by path")


class ReplayImage(Wire):
    """The image that the job ran, and a login that can pull it for two hours."""

    reference: str = Field(examples=["localhost:5000/trusted/3@sha256:…"])
    registry: str
    repository: str
    digest: str
    username: str
    password: str
    tls: bool


class ReplayOut(Wire):
    """What it takes to run an ended job again elsewhere."""

    job_id: int
    state: str
    failure_code: str | None
    task_id: str
    scan_id: str
    host: str
    instance_type: str
    time_limit_s: int
    image: ReplayImage
    env: list[ReplayVariable]
    slide: ReplaySlide
    results_digest: str | None = Field(None, description="the same for the same results of the same scan")
