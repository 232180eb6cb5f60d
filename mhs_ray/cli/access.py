"""``mhs client``, ``mhs company``, ``mhs webhook-secret`` and ``mhs audit-log``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import command
from mhs_ray.cli.connect import connect
from mhs_ray.cli.images import Limit
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.models import Role

app = typer.Typer(no_args_is_help=True, help="API clients: who may call, with which role.")
companies = typer.Typer(no_args_is_help=True, help="Companies and their feature flag. For the operator.")
webhook = typer.Typer(no_args_is_help=True, help="What a company's webhook calls are signed with.")

CompanyId = Annotated[
    int | None,
    typer.Option("--company", metavar="COMPANY", help="another company's, by id; asks as the operator", min=1),
]
ClientId = Annotated[str, typer.Argument(metavar="CLIENT", help="id of the client, mhs-…")]
CompanyArgument = Annotated[int, typer.Argument(metavar="COMPANY", help="id of the company", min=1)]
ExternalId = Annotated[str | None, typer.Option(help="Techcyte's `company_id`, or the identity provider's id of it")]
_WHEN = ("created_at", "last_used_at", "revoked_at", "at")


def _local(row: dict[str, Any]) -> dict[str, Any]:
    return {k: output.local_time(v) if k in _WHEN and v else v for k, v in row.items()}


def _show_secret(found: dict[str, Any]) -> None:
    output.facts(_local(found["client"]) | {"secret": found["client_secret"]})
    output.note("the secret is shown this once and kept nowhere")


@command(app)
def create(
    name: Annotated[str, typer.Argument(help="what the audit calls it, e.g. LIMS")],
    role: Annotated[Role, typer.Option(help="what it may do")] = Role.LAB_USER,
    company: CompanyId = None,
) -> None:
    """Make an API client; its secret is shown once.

    Example: mhs client create LIMS --role 'Lab User'
    """
    with connect(operator=company is not None or role is Role.OPERATOR) as mhs:
        output.emit(mhs.create_client(name, role, company), _show_secret)


@command(app, "list")
def list_(company: CompanyId = None) -> None:
    """List API clients, newest first, revoked ones too."""
    with connect(operator=company is not None) as mhs:
        found = mhs.clients(company)
    columns = ("id", "name", "role", "created_by", "created_at", "last_used_at", "revoked_at")
    output.emit(found, lambda _: output.table((_local(c) for c in found), columns, "no clients"))


@command(app)
def revoke(client: ClientId, company: CompanyId = None) -> None:
    """Revoke an API client for good; its secret and its tokens are refused within a minute."""
    with connect(operator=company is not None) as mhs:
        output.emit(mhs.revoke_client(client, company), lambda c: output.facts(_local(c)))


@command(companies, "create")
def create_company(
    name: Annotated[str, typer.Argument(help="e.g. 'North Lab'")],
    external_id: ExternalId = None,
    off: Annotated[bool, typer.Option("--off", help="with the feature flag off")] = False,
) -> None:
    """Make a company; its first client: mhs client create NAME --role 'Lab Admin' --company ID."""
    with connect(operator=True) as mhs:
        made = mhs.create_company({"name": name, "external_id": external_id, "mhs_enabled": not off})
    output.emit(made, lambda c: output.facts(_local(c)))


@command(companies, "list")
def list_companies() -> None:
    """List companies by name."""
    with connect(operator=True) as mhs:
        found = mhs.companies()
    columns = ("id", "name", "external_id", "mhs_enabled", "max_active_jobs", "has_webhook_secret", "created_at")
    output.emit(found, lambda _: output.table((_local(c) for c in found), columns, "no companies"))


@command(companies, "update")
def update_company(
    company: CompanyArgument,
    name: Annotated[str | None, typer.Option(help="its new name")] = None,
    external_id: ExternalId = None,
    max_active_jobs: Annotated[int | None, typer.Option(help="jobs at a time", min=0)] = None,
) -> None:
    """Change a company."""
    body = {"name": name, "external_id": external_id, "max_active_jobs": max_active_jobs}
    given = {k: v for k, v in body.items() if v is not None}
    if not given:
        raise InvalidInputError.at("options", "nothing to change; see `mhs company update --help`")
    _update(company, given)


@command(companies, "on")
def switch_on(company: CompanyArgument) -> None:
    """Set the feature flag "Model Hosting Service" of a company."""
    _update(company, {"mhs_enabled": True})


@command(companies, "off")
def switch_off(company: CompanyArgument) -> None:
    """Take the feature flag from a company: nobody of it gets in; its running jobs end as they would."""
    _update(company, {"mhs_enabled": False})


def _update(company: int, values: dict[str, Any]) -> None:
    with connect(operator=True) as mhs:
        output.emit(mhs.update_company(company, values), lambda c: output.facts(_local(c)))


@command(webhook, "create")
def create_webhook_secret(company: CompanyId = None) -> None:
    """Make the secret that webhook calls are signed with; the one before it stays good until the next."""
    with connect(operator=company is not None) as mhs:
        output.emit({"secret": mhs.create_webhook_secret(company)}, output.facts)
    output.note("the secret is shown this once")


@command(webhook, "remove")
def remove_webhook_secret(company: CompanyId = None) -> None:
    """Take no signed call any more."""
    with connect(operator=company is not None) as mhs:
        mhs.remove_webhook_secret(company)
    output.emit({"removed": True}, lambda _: output.line("no signed call is taken any more"))


def audit_log(
    client: Annotated[str | None, typer.Option(help="what this client did, by its id")] = None,
    company: CompanyId = None,
    limit: Limit = 50,
) -> None:
    """Show who did what, newest first; no line can be changed or removed."""
    with connect(operator=company is not None) as mhs:
        found = list(mhs.audit(limit, client_id=client, company_id=company))
    columns = ("at", "who", "client_id", "action", "target")
    output.emit(found, lambda _: output.table((_local(e) for e in found), columns, "nothing was done yet"))


def add_to(main: typer.Typer) -> None:
    """Add the commands."""
    panel = "Who has access"
    main.add_typer(app, name="client", rich_help_panel=panel)
    main.add_typer(companies, name="company", rich_help_panel=panel)
    main.add_typer(webhook, name="webhook-secret", rich_help_panel=panel)
    command(main, "audit-log", rich_help_panel=panel)(audit_log)
