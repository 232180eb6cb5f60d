"""Wire types of who may call: clients, companies, tokens, the audit."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from api.schemas.base import Body, RowId, Text, Wire
from mhs_ray.domain import models as m


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


class TokenOut(Wire):
    """An access token; expires_in: seconds."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105
    expires_in: int
