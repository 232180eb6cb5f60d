"""Access: the company's API clients, its webhook secret, who did what; and for operators, the companies."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from api.console.faults import by_field
from api.console.images import older
from api.console.pages import ConsoleRoute, go, page
from api.console.session import VisitorDep, WriteDep
from api.deps import CoreDep, IdPath
from api.schemas.access import ExternalId
from api.schemas.base import storable
from mhs_ray.auth.webhook import HEADER
from mhs_ray.domain.errors import ConflictError, InvalidInputError
from mhs_ray.domain.models import Principal, Role
from mhs_ray.services.core import Core

router = APIRouter(prefix="/console/access", include_in_schema=False, route_class=ConsoleRoute)
ClientPath = Annotated[str, Path(max_length=100, pattern=r"^[!-~]+$")]
CursorFilter = Annotated[str | None, Query(max_length=100)]
_EXTERNAL: Final = TypeAdapter(ExternalId)


@router.get("")
def access(request: Request, core: CoreDep, seen: VisitorDep, cursor: CursorFilter = None) -> Response:
    """Who may call, and what they did."""
    return _page(request, core, seen.who, cursor)


def _page(request: Request, core: Core, who: Principal, cursor: str | None = None, **values: Any) -> Response:
    company = core.access.company_for(who, None)
    operator = who.role is Role.OPERATOR
    audit = core.audit.page(company, cursor=cursor, limit=30)
    shown = {
        "clients": core.access.clients(who), "roles": [r for r in Role if operator or r is not Role.OPERATOR],
        "company": core.companies.get(company), "companies": core.access.list_companies(who) if operator else [],
        "audit": audit, "older": older("/console/access", audit.next_cursor), "signature_header": HEADER,
        "typed": {}, "faults": {}, "dialog": "", "made": None, "webhook_secret": "",
    }  # fmt: skip
    status = 422 if values.get("faults") else 200
    return page(request, "access.html", status, **{**shown, **values})


@router.post("/clients")
def create_client(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Make a client; its secret is on this page and nowhere else."""
    typed = {name: write.form.text(name) for name in ("name", "role", "company_id")}
    company = int(typed["company_id"]) if typed["company_id"].isdigit() and len(typed["company_id"]) < 16 else None
    try:
        if typed["role"] not in set(Role):
            raise InvalidInputError.at("$.role", "choose one")
        made = core.access.create_client(write.who, _storable(typed["name"]), Role(typed["role"]), company)
    except InvalidInputError as error:
        return _page(request, core, write.who, typed=typed, faults=by_field(error), dialog="create-client")
    request.state.audit_target = f"/console/access/clients/{made[0].id}"
    return _page(request, core, write.who, made=made)


@router.post("/clients/{client_id}/revoke")
def revoke_client(request: Request, core: CoreDep, write: WriteDep, client_id: ClientPath) -> Response:
    """End a client for good."""
    client = core.access.revoke_client(write.who, client_id)
    request.state.audit_target = f"/console/access/clients/{client.id}"
    return go("/console/access", f"{client.name} was revoked.")


@router.post("/webhook-secret")
def create_webhook_secret(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Make what webhook calls are signed with."""
    return _page(request, core, write.who, webhook_secret=core.access.new_webhook_secret(write.who))


@router.post("/webhook-secret/remove")
def remove_webhook_secret(core: CoreDep, write: WriteDep) -> Response:
    """Take no signed call any more."""
    core.access.drop_webhook_secrets(write.who)
    return go("/console/access", "No signed webhook call is taken any more.")


@router.post("/companies")
def create_company(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Make a company."""
    typed = {name: write.form.text(name) for name in ("company", "external_id")}
    try:
        name, external = _storable(typed["company"]), _external(typed["external_id"])
        made = core.access.create_company(write.who, name, external, enabled=True)
    except (InvalidInputError, ConflictError) as error:
        faults = by_field(error, {"$.name": "company"})
        return _page(request, core, write.who, typed=typed, faults=faults, dialog="create-company")
    return go("/console/access", f"{made.name} was made. Make its first client next.")


@router.post("/companies/{company_id}/switch")
def switch_company(core: CoreDep, write: WriteDep, company_id: IdPath) -> Response:
    """Turn a company's feature flag."""
    on = write.form.text("to") == "on"
    company = core.access.update_company(write.who, company_id, {"mhs_enabled": on})
    return go("/console/access", f"The Model Hosting Service is {'on' if on else 'off'} for {company.name}.")


def _storable(text: str) -> str:
    try:
        return storable(text) or ""
    except ValueError as error:
        raise InvalidInputError.at("$.name", str(error)) from None


def _external(text: str) -> str | None:
    try:
        return _EXTERNAL.validate_python(text) if text else None
    except ValidationError:
        raise InvalidInputError.at("$.external_id", "letters, digits and signs without blanks, 200 at most") from None
