"""The settings of the platform as one, and the only reader of the environment.

``MHS_ENGINE=docker``, ``MHS_API__PORT=9000`` (two underscores enter a section). A misspelt name is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.domain.sections import (
    ApiSettings,
    AuthSettings,
    BlobSettings,
    ClusterSettings,
    CohortSettings,
    ImageSettings,
    JobSettings,
    RegistrySettings,
    SandboxSettings,
    SecretSettings,
    SlideSettings,
    TechcyteSettings,
    TelemetrySettings,
    secret_in,
)


def _default_home() -> Path:
    # Not below /root: a container's user must be able to pass through to what is mounted from there.
    return Path("/var/lib/mhs") if os.geteuid() == 0 else Path.home() / ".mhs"


class Settings(BaseSettings):
    """All of it. host: HOST of the contract for stand-alone tasks; containers reach ``https://api.{host}``."""

    model_config = SettingsConfigDict(
        env_prefix="MHS_", env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    home: Path = Field(default_factory=_default_home)
    host: str = Field("mhs.internal", pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,240}[A-Za-z0-9])?(:[0-9]{1,5})?$")
    engine: Literal["auto", "podman", "docker"] = "auto"
    docker_host: str | None = None
    database_url: SecretStr | None = None
    database_url_file: Path | None = None  # a file that holds it
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    api: ApiSettings = ApiSettings()
    blobs: BlobSettings = BlobSettings()
    registry: RegistrySettings = RegistrySettings()
    jobs: JobSettings = JobSettings()
    slides: SlideSettings = SlideSettings()
    images: ImageSettings = ImageSettings()
    cluster: ClusterSettings = ClusterSettings()
    sandbox: SandboxSettings = SandboxSettings()
    cohorts: CohortSettings = CohortSettings()
    techcyte: TechcyteSettings = TechcyteSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    auth: AuthSettings = AuthSettings()
    secrets: SecretSettings = SecretSettings()

    @model_validator(mode="after")
    def _read_database_url(self) -> Settings:
        if self.database_url_file is not None:
            if self.database_url is not None:
                raise ValueError("MHS_DATABASE_URL and MHS_DATABASE_URL_FILE are both set; set one of the two")
            object.__setattr__(self, "database_url", SecretStr(secret_in(self.database_url_file)))
        return self

    @property
    def blobs_dir(self) -> Path:
        """Where blobs of kind ``local`` lie."""
        return self.blobs.folder or self.home / "blobs"

    @property
    def sql_url(self) -> str:
        """The database's SQLAlchemy URL; SQLite in `home` unless set."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'mhs.db'}"

    @property
    def node_dir(self) -> Path:
        """What one node keeps: slide cache, scratch, sandboxes."""
        return self.home / "node"


_FOR_NODES = {"host", "api", "blobs", "jobs", "slides", "images", "cluster", "sandbox", "log_level", "log_format"}


def for_nodes(settings: Settings) -> dict[str, Any]:
    """Return what a node of a cluster is told of its head's settings; no secret is among it."""
    return settings.model_dump(mode="json", include=_FOR_NODES, exclude_unset=True)


def as_node(own: Settings, of_head: Mapping[str, Any]) -> Settings:
    """Return a node's settings: the head's (`for_nodes`), but for what the node's own environment sets."""
    mine = own.model_dump(mode="json", include=_FOR_NODES, exclude_unset=True)
    merged: dict[str, Any] = {}
    for name in of_head.keys() | mine.keys():
        head, here = of_head.get(name), mine.get(name)
        if isinstance(head, Mapping) and isinstance(here, Mapping):
            merged[name] = {**head, **here}
        else:
            merged[name] = head if here is None else here
    here_only = {"home": own.home, "engine": own.engine, "docker_host": own.docker_host}
    return Settings.model_validate({**merged, **here_only})


CLIENT_VARIABLES = frozenset({"MHS_URL", "MHS_CLIENT_ID", "MHS_CLIENT_SECRET"})
"""Read by the command line (`client_environment`), not by the platform."""


def load_settings() -> Settings:
    """Read the settings of this process. Raises InvalidInputError that names every bad variable."""
    env = os.environ
    known = {f"MHS_{name}".upper() for name in Settings.model_fields}
    faults = [
        Fault(name, "no such setting; see `mhs doctor --settings` for all of them")
        for name in sorted(env)
        if name.upper().startswith("MHS_")
        and name.upper() not in CLIENT_VARIABLES
        and name.upper().split("__")[0] not in known
    ]
    if faults:
        raise InvalidInputError(faults)
    try:
        settings = Settings()
    except ValueError as error:
        raise InvalidInputError(_faults(error)) from None
    if settings.docker_host is None and env.get("DOCKER_HOST"):
        settings = settings.model_copy(update={"docker_host": env["DOCKER_HOST"]})
    return settings


def names_of_settings(env: Mapping[str, str]) -> list[str]:
    """Return the variables of `env` that set something of the platform."""
    return sorted(name for name in env if name.upper().startswith("MHS_") and name.upper() not in CLIENT_VARIABLES)


def use(variables: Mapping[str, str]) -> Settings:
    """Set these variables, for processes started from here on too, and return the settings that they make."""
    os.environ.update(variables)
    return load_settings()


def use_docker_host(settings: Settings, host: str) -> Settings:
    """Return `settings` with this Docker daemon; processes started from here on use it too."""
    os.environ["MHS_DOCKER_HOST"] = host
    return settings.model_copy(update={"docker_host": host})


@contextmanager
def settings_with(variables: Mapping[str, str]) -> Iterator[Settings]:
    """Yield the settings with these variables on top; processes started meanwhile have them too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield load_settings()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _faults(error: ValueError) -> list[Fault]:
    details = getattr(error, "errors", None)
    if details is None:
        return [Fault("MHS_*", str(error).splitlines()[0])]
    return [
        Fault("MHS_" + ("__".join(str(part) for part in d["loc"]).upper() or "*"), d["msg"])
        for d in details(include_input=False, include_url=False)
    ]


class ClientEnvironment(BaseModel):
    """Where the command line finds the API and how it signs in, when set in the environment."""

    url: str | None
    client_id: str | None
    client_secret: SecretStr | None


def client_environment() -> ClientEnvironment:
    """Read MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET."""
    secret = os.environ.get("MHS_CLIENT_SECRET")
    return ClientEnvironment(
        url=os.environ.get("MHS_URL"),
        client_id=os.environ.get("MHS_CLIENT_ID"),
        client_secret=SecretStr(secret) if secret else None,
    )
