"""Answers of the API as a client sees them; the OpenAPI document describes each field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict


class ImageVersion(TypedDict):
    """A pushed and checked state of an image."""

    id: int
    number: int
    digest: str
    size_bytes: int
    details: dict[str, Any]
    created_at: str


class InstanceType(TypedDict):
    """What a container can ask for."""

    name: str
    vcpu: int
    memory_gb: int
    gpu: str
    vram_gb: int


class Image(TypedDict):
    """An image definition."""

    id: int
    name: str
    status: str
    failure_message: str
    created_by: str
    created_at: str
    updated_at: str
    current: ImageVersion | None


class PushVariant(TypedDict):
    """Another way to push."""

    title: str
    commands: list[str]


class PushInstructions(TypedDict):
    """Where and how to push, with a fresh credential."""

    registry: str
    repository: str
    tag: str
    username: str
    password: str
    expires_at: str
    tls: bool
    commands: list[str]
    variants: list[PushVariant]


class EnvVar(TypedDict):
    """One variable of a container; the value of a secret one is None."""

    name: str
    value: str | None
    secret: bool


class Container(TypedDict):
    """A runnable container."""

    id: int
    name: str
    image_id: int
    image_name: str
    instance_type: str
    env: list[EnvVar]
    time_limit_s: int
    retry_exit_codes: list[int]
    max_model_retries: int
    created_by: str
    created_at: str
    updated_at: str


class Algorithm(TypedDict):
    """A case algorithm."""

    id: int
    name: str
    provider: str
    container_id: int | None
    container_name: str | None
    created_by: str
    created_at: str
    updated_at: str


class Scan(TypedDict):
    """One whole slide image."""

    id: int
    scan_id: str
    name: str
    status: str
    failure_message: str
    source: str
    size_bytes: int | None
    facts: dict[str, Any]
    created_by: str
    created_at: str
    upload_url: str | None
    upload_expires_at: str | None


class SignedUrl(TypedDict):
    """A URL that works until `expires_at`."""

    url: str
    expires_at: str


class Failure(TypedDict):
    """A failure card."""

    failure_class: str
    code: str
    cause: str
    mend: str
    excerpt: str
    exit_code: int | None


class Job(TypedDict):
    """One container on one scan of a task."""

    id: int
    state: str
    task_id: str
    scan_row_id: int
    scan_id: str
    algorithm_name: str
    container_id: int
    container_name: str
    image_digest: str
    instance_type: str
    priority: str
    attempt: int
    node: str | None
    failure: Failure | None
    resources: dict[str, Any]
    created_by: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    queue_position: int | None
    expected_wait_s: float | None
    waits_because: str | None
    tiles: dict[str, Any] | None


class Task(TypedDict):
    """An AI request; `jobs` is empty in lists."""

    task_id: str
    task_id_base64: str
    case_id: str | None
    algorithm_id: int
    algorithm_name: str
    origin: str
    priority: str
    description: str
    triage_category: str | None
    triage_score: float | None
    created_by: str
    created_at: str
    jobs: list[Job]


class Submitted(TypedDict):
    """What a submission led to."""

    task_id: str
    job_ids: list[int]
    created: bool


class JobEvent(TypedDict):
    """One line of a job's story."""

    seq: int
    attempt: int
    event: str
    state: str
    at: str
    node: str | None
    cause: str


class ScanResult(TypedDict):
    """The result of one scan in the words of the contract."""

    scanId: str
    results: dict[str, Any] | None
    qcFailReasons: list[str] | None
    workflow: dict[str, Any] | None
    geojson: dict[str, Any] | None
    features: int
    summary: dict[str, Any]
    jobId: int | None
    createdAt: str


class Results(TypedDict):
    """What a job or a task found."""

    caseResults: dict[str, Any] | None
    scanResults: list[ScanResult]


class Delivery(TypedDict):
    """One line of the outbox to Techcyte."""

    id: int
    task_id: str
    scan_id: str | None
    job_id: int | None
    kind: str
    state: str
    detail: str
    tries: int
    status_code: int | None
    not_before: str
    sent_at: str | None
    ended_at: str | None
    decided_by: str
    created_at: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log. number: from 0, within its attempt; source: stdout, stderr or platform."""

    attempt: int
    number: int
    at: str
    source: str
    text: str


class DayUsage(TypedDict):
    """What a company used of an instance type in attempts that ended on a day (UTC)."""

    day: str
    company_id: int
    company: str
    instance_type: str
    attempts: int
    jobs: int
    failed: int
    gpu_s: float
    platform_gpu_s: float


class Usage(TypedDict):
    """Usage from one day to another, both included."""

    since: str
    until: str
    items: list[DayUsage]
