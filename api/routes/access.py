"""Who has access: API clients, companies, the webhook's secret, and the log of who did what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from api.audited import AuditedRoute
from api.deps import CoreDep, CursorQuery, IdPath, IdQuery, LimitQuery, WhoDep, WriterDep, page_out, problems
from api.schemas.access import (
    AuditOut,
    ClientIn,
    ClientOut,
    CompanyIn,
    CompanyOut,
    CompanyPatch,
    MeOut,
    NewClientOut,
    WebhookSecretOut,
)
from api.schemas.base import PageOut, refuse_null

router = APIRouter(prefix="/v1", tags=["access"], route_class=AuditedRoute, responses=problems())
ClientPath = Annotated[str, Path(min_length=1, max_length=100, pattern=r"^[!-~]+$")]


def _of(company_id: int | None) -> str:
    return "" if company_id is None else f" of company {company_id}"


@router.get("/me", summary="Who am I?")
def get_me(core: CoreDep, who: WhoDep) -> MeOut:
    """The client, its role and its company."""
    return MeOut(
        client_id=who.client_id, name=who.name, role=who.role, company_id=who.company_id,
        company=core.companies.get(who.company_id).name,
    )  # fmt: skip


# ------------------------------------------------------------ clients


@router.get("/clients", summary="List API clients", responses=problems(404))
def list_clients(core: CoreDep, who: WhoDep, company_id: IdQuery = None) -> list[ClientOut]:
    """Newest first, revoked ones too. For Lab Admins and operators."""
    return [ClientOut.model_validate(c) for c in core.access.clients(who, company_id)]


@router.post("/clients", status_code=201, summary="Create an API client", responses=problems(404))
def create_client(request: Request, core: CoreDep, who: WriterDep, body: ClientIn) -> NewClientOut:
    """The secret is shown now and never again. For Lab Admins and operators."""
    request.state.audit_detail = f" as {body.role.value}{_of(body.company_id)}"
    client, secret = core.access.create_client(who, body.name, body.role, body.company_id)
    return NewClientOut(client=ClientOut.model_validate(client), client_secret=secret)


@router.post("/clients/{client_id}/revoke", summary="Revoke an API client", responses=problems(404, 409))
def revoke_client(core: CoreDep, who: WriterDep, client_id: ClientPath, company_id: IdQuery = None) -> ClientOut:
    """For good: its secret and its tokens are refused within a minute. For Lab Admins and operators."""
    return ClientOut.model_validate(core.access.revoke_client(who, client_id, company_id))


# ------------------------------------------------------------ the webhook's secret


@router.post("/webhook-secret", status_code=201, summary="Create a webhook secret", responses=problems(404))
def create_webhook_secret(
    request: Request, core: CoreDep, who: WriterDep, company_id: IdQuery = None
) -> WebhookSecretOut:
    """Shown now and never again; the one before it stays good until the next. For Lab Admins and operators."""
    request.state.audit_detail = _of(company_id)
    return WebhookSecretOut(secret=core.access.new_webhook_secret(who, company_id))


@router.delete("/webhook-secret", status_code=204, summary="Remove the webhook secrets", responses=problems(404))
def remove_webhook_secret(request: Request, core: CoreDep, who: WriterDep, company_id: IdQuery = None) -> None:
    """No call that is signed with them is taken any more. For Lab Admins and operators."""
    request.state.audit_detail = _of(company_id)
    core.access.drop_webhook_secrets(who, company_id)


# ------------------------------------------------------------ companies


@router.get("/companies", summary="List companies")
def list_companies(core: CoreDep, who: WhoDep) -> list[CompanyOut]:
    """By name. For operators."""
    return [CompanyOut.model_validate(c) for c in core.access.list_companies(who)]


@router.post("/companies", status_code=201, summary="Create a company", responses=problems(409))
def create_company(core: CoreDep, who: WriterDep, body: CompanyIn) -> CompanyOut:
    """A tenant of its own. For operators."""
    made = core.access.create_company(who, body.name, body.external_id, body.mhs_enabled)
    return CompanyOut.model_validate(made)


@router.patch("/companies/{company_id}", summary="Change a company", responses=problems(404, 409))
def update_company(
    request: Request, core: CoreDep, who: WriterDep, company_id: IdPath, body: CompanyPatch
) -> CompanyOut:
    """`mhs_enabled` is the feature flag "Model Hosting Service": off, nobody of the company gets in. For operators."""
    values = body.model_dump(exclude_unset=True)
    refuse_null(values, "name", "mhs_enabled")
    request.state.audit_detail = "".join(f" {name}={value}" for name, value in values.items())
    return CompanyOut.model_validate(core.access.update_company(who, company_id, values))


# ------------------------------------------------------------ audit


@router.get("/audit", summary="Who did what", responses=problems(404))
def list_audit(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    client_id: Annotated[str | None, Query(max_length=100, pattern=r"^[!-~]+$")] = None,
    company_id: IdQuery = None,
) -> PageOut[AuditOut]:
    """Newest first; no line can be changed or removed. For Lab Admins and operators."""
    company = core.access.company_for(who, company_id)
    page = core.audit.page(company, cursor=cursor, limit=limit, client_id=client_id)
    return PageOut[AuditOut].model_validate(page_out(page))
