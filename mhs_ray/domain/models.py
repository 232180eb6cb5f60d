"""The things the platform keeps, as frozen values. Times are timezone-aware UTC; sizes are bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.failures import Failure
from mhs_ray.domain.states import JobEvent, JobState

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An OCI image by digest, never by tag: ``registry/repository@sha256:…``."""

    registry: str  # host[:port]
    repository: str
    digest: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise InvalidInputError.at("$.digest", f"{self.digest[:80]!r} is no sha256 digest")

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}@{self.digest}"


class ImageStatus(StrEnum):
    """Where an image definition is on its way from ``created`` to ``uploaded``."""

    CREATED = "created"
    CHECKING = "checking"
    UPLOADED = "uploaded"
    FAILED = "failed"


class Provider(StrEnum):
    """Who runs a case algorithm, in Techcyte's words."""

    MHS = "Model Hosting Service"
    EXTERNAL = "External"
    TECHCYTE = "Techcyte"


class Role(StrEnum):
    """What a person or a client of a company may do."""

    LAB_ADMIN = "Lab Admin"
    LAB_USER = "Lab User"
    VIEWER = "Viewer"
    OPERATOR = "Operator"


class Priority(StrEnum):
    """Clinical work goes before research."""

    CLINICAL = "clinical"
    RESEARCH = "research"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a client of one company with one role."""

    company_id: int
    name: str
    role: Role
    client_id: str = ""
    enabled: bool = True  # the company's feature flag "Model Hosting Service"

    @property
    def may_write(self) -> bool:
        """Viewers only look."""
        return self.role is not Role.VIEWER

    @property
    def may_administer(self) -> bool:
        """Lab Admins say who else may call for their company; operators for every company."""
        return self.role in {Role.LAB_ADMIN, Role.OPERATOR}


@dataclass(frozen=True, slots=True)
class ApiClient:
    """An API client as people see it: never its secret, which was shown once."""

    id: str
    company_id: int
    name: str
    role: Role
    created_by: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Company:
    """A tenant. external_id: what Techcyte or an identity provider calls it."""

    id: int
    name: str
    external_id: str | None
    mhs_enabled: bool
    max_active_jobs: int | None
    has_webhook_secret: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the log of who did what."""

    id: int
    company_id: int
    at: datetime
    who: str
    client_id: str
    action: str
    target: str


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """One pushed and promoted state of an image definition."""

    id: int
    image_id: int
    number: int
    digest: str
    size_bytes: int  # compressed, as stored in the registry
    details: Mapping[str, Any]  # layers, labels, architecture, entrypoint, warnings
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Image:
    """An image definition; `current` is the newest promoted version."""

    id: int
    company_id: int
    name: str
    status: ImageStatus
    failure_message: str
    created_by: str
    created_at: datetime
    updated_at: datetime
    current: ImageVersion | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """A runnable container: image, instance type, variables, limits."""

    id: int
    company_id: int
    name: str
    image_id: int
    image_name: str
    instance_type: str
    env: tuple[EnvVar, ...]
    time_limit_s: int
    created_by: str
    created_at: datetime
    updated_at: datetime
    retry_exit_codes: tuple[int, ...] = ()
    max_model_retries: int = 0


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A case algorithm: what a person picks as "AI model"."""

    id: int
    company_id: int
    name: str
    provider: Provider
    container_id: int | None
    container_name: str | None
    created_by: str
    created_at: datetime
    updated_at: datetime


class ScanStatus(StrEnum):
    """A scan is usable once its bytes are there and were opened."""

    UPLOADING = "uploading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Scan:
    """One whole slide image. `number` is what the contract calls SCAN_ID."""

    id: int
    company_id: int
    number: int
    name: str
    status: ScanStatus
    failure_message: str
    source: str  # "blob", "path" or "url"
    size_bytes: int | None
    facts: Mapping[str, Any]  # format, width, height, mpp, levels …; {} until known
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Task:
    """One AI request on one or more scans of a case. `number` is the integer of Techcyte's task id."""

    id: int
    company_id: int
    number: int
    case_number: int | None
    algorithm_id: int
    algorithm_name: str
    origin: str  # "techcyte" or "local"
    priority: Priority
    description: str
    created_by: str
    created_at: datetime
    triage_category: str | None = None
    triage_score: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One container on one scan of a task."""

    id: int
    company_id: int
    task_id: int
    task_number: int
    scan_id: int
    scan_number: int
    algorithm_name: str
    container_id: int
    container_name: str
    image_digest: str
    instance_type: str
    priority: Priority
    state: JobState
    attempt: int  # number of the newest attempt; 0 before the first
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    failure: Failure | None
    node: str | None
    resources: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobEventRecord:
    """One line of a job's story."""

    seq: int
    job_id: int
    attempt: int
    event: JobEvent
    state: JobState
    at: datetime
    node: str | None
    cause: str
