"""Wire types of what can be run: images, runnable containers, case algorithms, instance types."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from api.schemas.base import Body, RowId, Text, Wire
from mhs_ray.domain import models as m
from mhs_ray.domain.env import EnvVar


class InstanceTypeOut(Wire):
    """An AWS GPU instance type that a runnable container can ask for."""

    name: str = Field(examples=["g4dn.xlarge"])
    vcpu: int
    memory_gb: int
    gpu: str = Field(examples=["T4"])
    vram_gb: int


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
    env: list[EnvVarIn] = Field([])
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
