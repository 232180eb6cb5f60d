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


class Container(TypedDict):
    """A runnable container."""

    id: int
    name: str
    image_id: int
    image_name: str
    instance_type: str
    env: list[dict[str, Any]]
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


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log. number: from 0, within its attempt; source: stdout, stderr or platform."""

    attempt: int
    number: int
    at: str
    source: str
    text: str
