"""What can be set of each part of the platform: the sections of the settings, with their defaults and rules.

Each part is handed its own section. Who reads them from the environment is `mhs_ray.domain.settings`.
"""

from __future__ import annotations

import difflib
from datetime import time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.models import Role


def _bytes(text: str) -> ByteSize:
    return ByteSize._validate(text, None)  # type: ignore[arg-type]


def _known_type(name: str) -> str:
    if name not in INSTANCE_TYPES:
        near = difflib.get_close_matches(name, INSTANCE_TYPES, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(INSTANCE_TYPES)}"
        raise ValueError(f"{name} is no instance type; {meant}")
    return name


InstanceTypeName = Annotated[str, AfterValidator(_known_type)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiSettings(_Section):
    """The Serve API. port 0: any free one. public_url: how people reach it, when that is not host:port.

    internal_url: how the nodes of a cluster reach the results gateway, such as ``http://10.0.0.4:8080``.
    """

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    public_url: str | None = None
    internal_url: str | None = Field(None, pattern=r"^https?://[^/?#]+$")
    replicas: int = Field(1, ge=1)
    max_body: ByteSize = _bytes("8MiB")
    max_results_body: ByteSize = _bytes("512MiB")


class BlobSettings(_Section):
    """Where logs, results, slides and debug files are kept. folder: of ``local``, when not in `home`."""

    kind: Literal["local", "s3"] = "local"
    folder: Path | None = None  # on a cluster of several machines: one that all of them see, such as NFS
    port: int = Field(0, ge=0, le=65535)  # of the local blob server
    bucket: str = "mhs"
    prefix: str = ""
    endpoint_url: str | None = None
    public_endpoint_url: str | None = None  # the same as those who are given signed URLs reach it
    region: str = "us-east-1"
    quota: ByteSize = _bytes("1TiB")
    min_free: ByteSize = _bytes("2GiB")


class RegistrySettings(_Section):
    """The OCI registry of the platform.

    address: ``host[:port]`` of a registry that is not this machine's; ECR's is
    ``ACCOUNT.dkr.ecr.REGION.amazonaws.com``. prefix: before ``quarantine/…`` and ``trusted/…`` in ECR. role: ARN of
    the role whose sessions, cut down to one repository, push and pull. max_severity: ECR's scan may find no worse;
    None: it is not asked.
    """

    kind: Literal["distribution", "ecr"] = "distribution"
    port: int = Field(0, ge=0, le=65535)
    address: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9.-]{0,240}[a-z0-9])?(:[0-9]{1,5})?$")
    tls: bool = True  # of `address`
    prefix: str = Field("mhs/", pattern=r"^([a-z0-9]+([._-][a-z0-9]+)*/)*$")
    role: str | None = Field(None, pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/.+$")
    max_severity: Literal["LOW", "MEDIUM", "HIGH"] | None = None
    credential_life: timedelta = timedelta(hours=12)
    max_image: ByteSize = _bytes("20GiB")
    reconcile_every: timedelta = timedelta(seconds=15)
    scanner: tuple[str, ...] = ()  # a command whose non-zero exit blocks an image


class ImageSettings(_Section):
    """Images that a node pulled for jobs. Beyond these bounds those go that nobody used for the longest time.

    cache: what all images of the node's engine may take. min_free: left free on their disk. max_age: since last use.
    """

    cache: ByteSize = _bytes("200GiB")
    min_free: ByteSize = _bytes("5GiB")
    max_age: timedelta = timedelta(days=30)


class JobSettings(_Section):
    """What a job may take and how it is tried again. Times are of running, never of waiting."""

    max_time_limit: timedelta = timedelta(minutes=90)  # Techcyte's own limit
    prepare_limit: timedelta = timedelta(minutes=30)
    stop_grace: timedelta = timedelta(seconds=10)
    max_platform_attempts: int = Field(4, ge=1)
    backoff: timedelta = timedelta(seconds=2)
    backoff_max: timedelta = timedelta(minutes=5)
    max_log: ByteSize = _bytes("64MiB")
    max_log_line: ByteSize = _bytes("64KiB")
    scratch: ByteSize = _bytes("20GiB")
    max_debug_file: ByteSize = _bytes("2GiB")


class SlideSettings(_Section):
    """Slides on a node, and where their bytes may come from.

    allow_private: URLs whose host resolves to a private or loopback address may be fetched (stand-alone use).
    """

    cache: ByteSize = _bytes("50GiB")
    max_slide: ByteSize = _bytes("100GiB")
    allow_private: bool = False
    allow_hosts: tuple[str, ...] = ()
    s3_buckets: tuple[str, ...] = ()  # `bucket` or `bucket/prefix/` whose s3:// slides a cohort may name
    path_roots: tuple[Path, ...] = ()  # where scans may be registered by path; embedded: everywhere


class TechcyteSettings(_Section):
    """Where results of Techcyte's tasks go. host: as in the contract's HOST; without it nothing is delivered.

    base_url: instead of ``https://api.{host}``, for tests. ca: a bundle to trust instead of the system's.
    settle: a request that was never answered may still be stored for so long.
    """

    host: str | None = Field(None, pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,240}[A-Za-z0-9])?(:[0-9]{1,5})?$")
    base_url: str | None = None
    ca: Path | None = None
    timeout: timedelta = timedelta(seconds=60)
    backoff: timedelta = timedelta(seconds=2)
    backoff_max: timedelta = timedelta(minutes=5)
    settle: timedelta = timedelta(seconds=60)

    @property
    def url(self) -> str | None:
        """The base of Techcyte's API, None where nothing is delivered."""
        return self.base_url or (f"https://api.{self.host}" if self.host else None)


_WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _instance_type(name: str) -> str:
    if name not in INSTANCE_TYPES:
        raise ValueError(f"no such instance type; there are {', '.join(INSTANCE_TYPES)}")
    return name


def _weekdays(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.lower().split(","):
        first, _, last = part.strip().partition("-")
        if first not in _WEEK or (last or first) not in _WEEK:
            raise ValueError(f"{part.strip()!r} is no day or span of days, such as mon-fri or sat")
        at, count = _WEEK.index(first), (_WEEK.index(last or first) - _WEEK.index(first)) % 7 + 1
        found += [(at + i) % 7 for i in range(count)]
    return tuple(sorted(set(found)))


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"no such time zone {name!r}; give one such as Europe/Zurich or UTC") from None
    return name


class WarmNodes(_Section):
    """Nodes of a type that are to be there at certain hours, busy or not. from > to: over midnight; to 00:00: its end.

    zone: whose wall clock from and to are of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    instance_type: Annotated[str, AfterValidator(_instance_type)]
    nodes: int = Field(1, ge=1)
    days: str = "mon-sun"
    begin: time = Field(time(0), alias="from")
    end: time = Field(time(0), alias="to")
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"

    @field_validator("days")
    @classmethod
    def _known_days(cls, text: str) -> str:
        _weekdays(text)
        return text

    @property
    def weekdays(self) -> tuple[int, ...]:
        """The days, Monday 0."""
        return _weekdays(self.days)


class ClusterSettings(_Section):
    """How jobs find a node, and what nodes have ready before a job asks.

    placement ``single``: this machine stands in for every instance type; ``label``: only a node labelled so.
    prepull: how many images a node pulls ahead, those likeliest for its type; 0: none. prefetch: a node fetches the
    next job's slide and image while the present one computes. warm: nodes by schedule, as a JSON array of objects.
    ray_address: of a Ray that runs already, whose head this machine is; None: `mhs up` starts one of its own.
    address: of this machine as its nodes reach it; API, registry and blob server listen there.
    """

    placement: Literal["single", "label"] = "single"
    declared_gpus: int = Field(1, ge=1)  # GPUs that Ray is told of on a single machine that shows none
    ray_address: str | None = Field(None, pattern=r"^[^\s/]+:[0-9]{1,5}$")
    address: str = "127.0.0.1"
    give_back: timedelta = timedelta(seconds=30)  # before a node goes, what still runs there is stopped and rerun
    max_waiting: int = Field(8, ge=1)  # attempts that wait for a node at a time (`label`: of each type)
    instance_types: tuple[InstanceTypeName, ...] = ()  # `label`: types that the autoscaler can start
    prepull: int = Field(4, ge=0)
    prefetch: bool = True
    warm: tuple[WarmNodes, ...] = ()
    dashboard_port: int = Field(8265, ge=0, le=65535)
    gcs_port: int = Field(0, ge=0, le=65535)


class CohortSettings(_Section):
    """Cohorts. window: slides of one cohort in the queue at a time. prices: of an hour of each instance type.

    The prices are AWS's on demand in us-east-1; a type that is not among them has no forecast of cost.
    """

    window: int = Field(200, ge=1, le=5000)
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    prices: dict[str, Annotated[float, Field(ge=0)]] = {
        "g4dn.xlarge": 0.526, "g4dn.2xlarge": 0.752, "g4dn.4xlarge": 1.204, "g5.2xlarge": 1.212, "g5.4xlarge": 1.624,
        "g6.2xlarge": 0.978, "g6.4xlarge": 1.323, "g6e.2xlarge": 2.242,
    }  # fmt: skip


class SandboxSettings(_Section):
    """What surrounds a model's container.

    allow_weak: run jobs also on a node whose `mhs audit-sandbox` failed. direct_hosts: ``name`` or ``name:port`` of
    hosts outside that every container may reach by TLS besides its slide's and the results gateway, such as a host of
    Techcyte's; each is a way out for data, so there are none unless set.
    """

    allow_weak: bool = False
    runtime: str | None = None  # OCI runtime for models, e.g. runsc
    direct_hosts: tuple[
        Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,240}[a-z0-9])?(:[0-9]{1,5})?$")], ...
    ] = ()


class TelemetrySettings(_Section):
    """Traces. otlp_endpoint: base URL of a collector (``http://collector:4318``); without it nothing is traced.

    otlp_token: sent as a bearer token. trace_every: how often ended attempts are looked for.
    """

    otlp_endpoint: str | None = Field(None, pattern=r"^https?://[^\s@?#]+$")
    otlp_token: SecretStr | None = None
    otlp_timeout: timedelta = timedelta(seconds=5)
    trace_every: timedelta = timedelta(seconds=5)


class IssuerSettings(_Section):
    """An OpenID provider (Techcyte's, or a lab's own) whose tokens and sign-ins are taken.

    audience: what its access tokens are for; client_id, client_secret: of the console, for signing in there.
    company_claim: holds a company's `external_id`. role_claim: holds a role, or a list of which the first known counts;
    roles: the provider's names of roles → ours; default_role: where a token names none. jwks_url, authorize_url,
    token_url: instead of what the issuer's ``/.well-known/openid-configuration`` says.
    """

    issuer: str = Field(pattern=r"^https?://[^\s?#]+$")
    name: str = "single sign-on"
    audience: str | None = None
    client_id: str | None = None
    client_secret: SecretStr | None = None
    company_claim: str = "company_id"
    role_claim: str = "role"
    roles: dict[str, Role] = {}
    default_role: Role | None = None
    scopes: str = "openid profile email"
    jwks_url: str | None = None
    authorize_url: str | None = None
    token_url: str | None = None


class AuthSettings(_Section):
    """Who may call, and how often. rate: requests a second of one client, `burst` at once; 0: no limit."""

    rate: float = Field(100.0, ge=0)
    burst: int = Field(2000, ge=1)
    issuers: tuple[IssuerSettings, ...] = ()


class SecretSettings(_Section):
    """Where the platform's keys are, when not in ``keys`` of the home folder. The first that has one is taken.

    Each key by itself; ``MHS_SECRETS__VAULT_FILE`` names a file that holds it. directory: a file per key, named as
    `mhs secrets new` names them. aws_secret: name or ARN of a secret in AWS Secrets Manager, a JSON object of keys.
    """

    directory: Path | None = None
    aws_secret: str | None = None
    aws_region: str | None = None
    vault: SecretStr | None = None
    tokens: SecretStr | None = None
    blobs: SecretStr | None = None
    registry_events: SecretStr | None = None
    ray_token: SecretStr | None = None
    platform: SecretStr | None = None
    client_id: SecretStr | None = None
    client_secret: SecretStr | None = None
    operator_id: SecretStr | None = None
    operator_secret: SecretStr | None = None
    metrics_token: SecretStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        values = dict(given)
        for name in [n for n in given if n.endswith("_file") and n.removesuffix("_file") in cls.model_fields]:
            secret, path = name.removesuffix("_file"), values.pop(name)
            if values.get(secret):
                raise ValueError(f"{secret} and {name} are both set; set one of the two")
            values[secret] = secret_in(Path(path))
        return values


def secret_in(path: Path) -> str:
    """Return the secret that a file holds. Raises ValueError where there is none."""
    try:
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); it must hold the secret") from None
    if not found:
        raise ValueError(f"{path} is empty; it must hold the secret")
    return found
