"""Wire types of ``/v1``. Ids are integers; times are RFC 3339 in UTC; sizes are bytes."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mhs_ray.domain import models as m
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.domain.failures import FailureClass, FailureCode
from mhs_ray.domain.states import JobState
from mhs_ray.results.outbox import DeliveryState, Kind
from mhs_ray.store.sql.deliveries import Delivery

T = TypeVar("T")
MAX_ROW_ID = (1 << 53) - 1
RowId = Annotated[int, Field(ge=1, le=MAX_ROW_ID)]


def storable(text: str | None) -> str | None:
    """Return `text`. Raises ValueError for what a database cannot keep: NUL characters and halves of characters."""
    if text is not None and ("\x00" in text or any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("NUL characters and lone surrogates cannot be part of a text")
    return text


Text = Annotated[str, AfterValidator(storable)]


class Wire(BaseModel):
    """Answers are read from the domain's own values."""

    model_config = ConfigDict(from_attributes=True)


class Body(BaseModel):
    """Requests take no unknown keys: a misspelt one is a fault."""

    model_config = ConfigDict(extra="forbid")


class PageOut(Wire, Generic[T]):
    """A piece of a list, newest first."""

    items: list[T]
    next_cursor: str | None = Field(description="give it back as `cursor` for the next piece; null at the end")


def refuse_null(values: dict[str, Any], *names: str) -> None:
    """Raises InvalidInputError for fields of a change that cannot be null."""
    if missing := [name for name in names if name in values and values[name] is None]:
        raise InvalidInputError([Fault(f"$.{name}", "cannot be null; leave it out to keep it") for name in missing])


# ------------------------------------------------------------ access


class MeOut(Wire):
    """Who calls."""

    client_id: str
    name: str
    role: m.Role
    company_id: int
    company: str


class ClientIn(Body):
    """A new API client."""

    name: Text = Field(examples=["LIMS"])
    role: m.Role = m.Role.LAB_USER
    company_id: RowId | None = Field(None, description="another company's; for operators")


class ClientOut(Wire):
    """An API client; its secret is kept nowhere."""

    id: str = Field(examples=["mhs-0f3c1a2b4d5e6f70"])
    company_id: int
    name: str
    role: m.Role
    created_by: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewClientOut(Wire):
    """A client that was just made, with its secret, which is shown this once."""

    client: ClientOut
    client_secret: str


class WebhookSecretOut(Wire):
    """What webhook calls are signed with, shown this once."""

    secret: str


ExternalId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]


class CompanyIn(Body):
    """A new company."""

    name: Text = Field(examples=["North Lab"])
    external_id: ExternalId | None = Field(None, description="Techcyte's or the identity provider's id of it")
    mhs_enabled: bool = Field(True, description='the feature flag "Model Hosting Service"')


class CompanyPatch(Body):
    """What is to change."""

    name: Text | None = None
    external_id: ExternalId | None = None
    mhs_enabled: bool | None = None
    max_active_jobs: int | None = Field(None, ge=0, le=1_000_000, description="null: no limit of its own")


class CompanyOut(Wire):
    """A tenant."""

    id: int
    name: str
    external_id: str | None
    mhs_enabled: bool
    max_active_jobs: int | None
    has_webhook_secret: bool
    created_at: datetime


class AuditOut(Wire):
    """Who did what to what, and when."""

    id: int
    at: datetime
    who: str
    client_id: str
    action: str = Field(examples=["create image"])
    target: str = Field(examples=["/v1/images/3"])


# ------------------------------------------------------------ instance types


class InstanceTypeOut(Wire):
    """An AWS GPU instance type that a runnable container can ask for."""

    name: str = Field(examples=["g4dn.xlarge"])
    vcpu: int
    memory_gb: int
    gpu: str = Field(examples=["T4"])
    vram_gb: int


# ------------------------------------------------------------ images


class ImageIn(Body):
    """A new image definition, or its new name."""

    name: Text = Field(examples=["Mitosis detector"])


class ImageVersionOut(Wire):
    """A pushed and checked state of an image."""

    id: int
    number: int
    digest: str = Field(examples=["sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"])
    size_bytes: int
    details: dict[str, Any] = Field(description="architecture, layers, labels, entrypoint, warnings …")
    created_at: datetime


class ImageOut(Wire):
    """An image definition."""

    id: int
    name: str
    status: m.ImageStatus
    failure_message: str
    created_by: str
    created_at: datetime
    updated_at: datetime
    current: ImageVersionOut | None = Field(description="the newest version that runs; null before the first push")


class PushVariantOut(Wire):
    """Another way to push."""

    title: str
    commands: list[str]


class PushInstructionsOut(Wire):
    """Docker Push Instructions: four commands, with a credential that is good until `expires_at`."""

    registry: str
    repository: str
    tag: str
    username: str
    password: str
    expires_at: datetime
    tls: bool
    commands: list[str]
    variants: list[PushVariantOut]


# ------------------------------------------------------------ containers


class EnvVarIn(Body):
    """One environment variable. Of a secret one that exists already the value can be left out on an update."""

    name: Text = Field(examples=["THRESHOLD"])
    value: Text | None = Field(None, examples=["0.5"])
    secret: bool = False


class EnvVarOut(Wire):
    """One environment variable; the value of a secret one is never returned."""

    name: str
    value: str | None
    secret: bool

    @classmethod
    def of(cls, var: EnvVar) -> EnvVarOut:
        """Leave out what is secret."""
        return cls(name=var.name, value=None if var.secret else var.value, secret=var.secret)


class ContainerIn(Body):
    """A new runnable container."""

    name: Text | None = Field(None, description="display name; made from the image's name when left out")
    image_id: RowId
    instance_type: str = Field(examples=["g4dn.xlarge"])
    env: list[EnvVarIn] = []
    time_limit_s: int | None = Field(None, description="running time, seconds; the maximum (5,400) when left out")
    retry_exit_codes: list[int] = Field([], description="exit codes after which the model asks to be run again")
    max_model_retries: int = 0


class ContainerPatch(Body):
    """What to change; `env` replaces all variables."""

    name: Text | None = None
    image_id: RowId | None = None
    instance_type: str | None = None
    env: list[EnvVarIn] | None = None
    time_limit_s: int | None = None
    retry_exit_codes: list[int] | None = None
    max_model_retries: int | None = None


class ContainerOut(Wire):
    """A runnable container."""

    id: int
    name: str
    image_id: int
    image_name: str
    instance_type: str
    env: list[EnvVarOut]
    time_limit_s: int
    retry_exit_codes: list[int]
    max_model_retries: int
    created_by: str
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, c: m.Container) -> ContainerOut:
        """Leave out what is secret."""
        return cls(
            id=c.id, name=c.name, image_id=c.image_id, image_name=c.image_name, instance_type=c.instance_type,
            env=[EnvVarOut.of(v) for v in c.env], time_limit_s=c.time_limit_s,
            retry_exit_codes=list(c.retry_exit_codes), max_model_retries=c.max_model_retries,
            created_by=c.created_by, created_at=c.created_at, updated_at=c.updated_at,
        )  # fmt: skip


# ------------------------------------------------------------ case algorithms


class AlgorithmIn(Body):
    """A new case algorithm."""

    name: Text = Field(examples=["Mitosis count"])
    provider: m.Provider = m.Provider.MHS
    container_id: RowId | None = None


class AlgorithmPatch(Body):
    """What to change."""

    name: Text | None = None
    provider: m.Provider | None = None
    container_id: RowId | None = None


class AlgorithmOut(Wire):
    """A case algorithm: what a person picks as "AI model"."""

    id: int
    name: str
    provider: m.Provider
    container_id: int | None
    container_name: str | None
    created_by: str
    created_at: datetime
    updated_at: datetime


# ------------------------------------------------------------ scans


class ScanIn(Body):
    """A scan to register: by `url`, by `path` on the platform's machine, or by an upload that follows (`filename`)."""

    name: Text | None = None
    url: Text | None = Field(None, description="http(s) URL of the slide, e.g. a presigned S3 URL")
    path: Text | None = Field(None, description="file or DICOM folder on the platform's machine")
    filename: Text | None = Field(None, description="asks for an upload URL for a file of this name")
    scan_id: str | None = Field(None, description="the contract's SCAN_ID; the next of ours when left out")


class ScanOut(Wire):
    """One whole slide image."""

    id: int
    scan_id: str = Field(description="the contract's SCAN_ID", examples=["8946136"])
    name: str
    status: m.ScanStatus
    failure_message: str
    source: str
    size_bytes: int | None
    facts: dict[str, Any] = Field(description="format, width, height, levels, mpp …; empty until the slide was opened")
    created_by: str
    created_at: datetime
    upload_url: str | None = Field(None, description="PUT the file here, then POST …/complete")
    upload_expires_at: datetime | None = None

    @classmethod
    def of(cls, s: m.Scan, upload_url: str | None = None, expires_at: datetime | None = None) -> ScanOut:
        """Name the scan as the contract does."""
        return cls(
            id=s.id, scan_id=str(s.number), name=s.name, status=s.status, failure_message=s.failure_message,
            source=s.source, size_bytes=s.size_bytes, facts=dict(s.facts), created_by=s.created_by,
            created_at=s.created_at, upload_url=upload_url, upload_expires_at=expires_at,
        )  # fmt: skip


class SignedUrlOut(Wire):
    """A URL that works until `expires_at`."""

    url: str
    expires_at: datetime


# ------------------------------------------------------------ tasks and jobs


class TaskIn(Body):
    """An AI request on one or more scans."""

    algorithm_id: RowId | None = None
    algorithm: Text | None = Field(None, description="name of the case algorithm, instead of its id")
    scan_ids: list[RowId] = Field(description="ids (`id`, not `scan_id`) of the scans")
    task_id: str | None = Field(None, description="integer or Techcyte's base64; the same one again adds nothing")
    case_id: str | None = Field(None, examples=["aHVtYW5DYXNlOjI0MjEzNjY="])
    priority: m.Priority = m.Priority.CLINICAL
    description: Text = Field("", max_length=10_000)


class FailureOut(Wire):
    """Why a job failed."""

    failure_class: FailureClass
    code: FailureCode
    cause: str
    mend: str
    excerpt: str
    exit_code: int | None


class TileProgressOut(Wire):
    """How far a container's tile feed is."""

    done: int
    planned: int
    left_s: float | None = Field(None, description="seconds left, if it goes on so")


class JobOut(Wire):
    """One container on one scan of a task."""

    id: int
    state: JobState
    task_id: str
    scan_row_id: int
    scan_id: str
    algorithm_name: str
    container_id: int
    container_name: str
    image_digest: str
    instance_type: str
    priority: m.Priority
    attempt: int
    node: str | None
    failure: FailureOut | None
    resources: dict[str, Any]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    queue_position: int | None = None
    expected_wait_s: float | None = Field(None, description="while queued: if things go on as they went lately")
    waits_because: str | None = Field(None, description="while it has no node: what it waits for, in a sentence")
    tiles: TileProgressOut | None = Field(None, description="of a container that is fed tiles; not in lists")

    @classmethod
    def of(
        cls, j: m.Job, queue_position: int | None = None, expected_wait: timedelta | None = None,
        waits_because: str | None = None,
    ) -> JobOut:  # fmt: skip
        """Name task and scan as the contract does."""
        return cls(
            id=j.id, state=j.state, task_id=str(j.task_number), scan_row_id=j.scan_id, scan_id=str(j.scan_number),
            algorithm_name=j.algorithm_name, container_id=j.container_id, container_name=j.container_name,
            image_digest=j.image_digest, instance_type=j.instance_type, priority=j.priority, attempt=j.attempt,
            node=j.node, failure=FailureOut.model_validate(j.failure) if j.failure else None,
            resources=dict(j.resources), created_by=j.created_by, created_at=j.created_at, started_at=j.started_at,
            ended_at=j.ended_at, queue_position=queue_position,
            expected_wait_s=None if expected_wait is None else round(expected_wait.total_seconds(), 1),
            waits_because=waits_because,
        )  # fmt: skip


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


class TaskOut(Wire):
    """An AI request."""

    task_id: str = Field(examples=["185714"])
    task_id_base64: str = Field(examples=["dGFzazoxODU3MTQ="])
    case_id: str | None
    algorithm_id: int
    algorithm_name: str
    origin: str
    priority: m.Priority
    description: str
    triage_category: str | None = Field(None, description="as the newest posting or PATCH of a container set it")
    triage_score: float | None = None
    created_by: str
    created_at: datetime
    jobs: list[JobOut] = []


class DeliveryOut(Wire):
    """One line of the outbox to Techcyte. detail: what happened last, or what a person is to decide."""

    id: int
    task_id: str
    scan_id: str | None
    job_id: int | None
    kind: Kind
    state: DeliveryState
    detail: str
    tries: int = Field(description="requests that were begun")
    status_code: int | None = Field(description="of Techcyte's newest answer")
    not_before: datetime = Field(description="while the platform is at it: when it looks again")
    sent_at: datetime | None
    ended_at: datetime | None
    decided_by: str
    created_at: datetime

    @classmethod
    def of(cls, d: Delivery) -> DeliveryOut:
        """Name task and scan as the contract does."""
        return cls(
            id=d.id, task_id=str(d.task_number), scan_id=None if d.scan_number is None else str(d.scan_number),
            job_id=d.job_id, kind=d.kind, state=d.state, detail=d.detail, tries=d.tries, status_code=d.status_code,
            not_before=d.not_before, sent_at=d.sent_at, ended_at=d.ended_at, decided_by=d.decided_by,
            created_at=d.created_at,
        )  # fmt: skip


class SubmittedOut(Wire):
    """What a submission led to. created: false when the same task id had come before and nothing was added."""

    task_id: str
    job_ids: list[int]
    created: bool


class JobEventOut(Wire):
    """One line of a job's story."""

    seq: int
    attempt: int
    event: str
    state: JobState
    at: datetime
    node: str | None
    cause: str


class ScanResultOut(Wire):
    """The result of one scan; `features` says how many `geojson` has."""

    scan_id: str = Field(alias="scanId")
    results: dict[str, Any] | None
    qc_fail_reasons: list[str] | None = Field(alias="qcFailReasons")
    workflow: dict[str, Any] | None
    geojson: dict[str, Any] | None = None
    features: int
    summary: dict[str, Any]
    job_id: int | None = Field(alias="jobId")
    created_at: datetime = Field(alias="createdAt")


class ResultsOut(Wire):
    """Results in the words of the contract."""

    case_results: dict[str, Any] | None = Field(alias="caseResults")
    scan_results: list[ScanResultOut] = Field(alias="scanResults")


class DayUsageOut(Wire):
    """What a company used of an instance type in attempts that ended on a day (UTC)."""

    day: date
    company_id: int
    company: str
    instance_type: str
    attempts: int
    jobs: int = Field(description="that ended for good")
    failed: int
    gpu_s: float = Field(description="seconds that containers held a GPU")
    platform_gpu_s: float = Field(description="the part of gpu_s that failures of the platform wasted")


class UsageOut(Wire):
    """Usage from one day to another, both included."""

    since: date
    until: date
    items: list[DayUsageOut]


class TokenOut(Wire):
    """An access token; expires_in: seconds."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105
    expires_in: int


class EvaluationOut(Wire):
    """One evaluation of a case, as Techcyte answers it."""

    id: int
    sample_id: int
    case_id: int | None
    task_id: int
    details: dict[str, Any]


class AliveOut(Wire):
    """The replica answers."""

    status: str = "ok"


class HealthOut(Wire):
    """Whether the platform can do its work; `parts` says which one cannot."""

    ready: bool
    parts: dict[str, str]
