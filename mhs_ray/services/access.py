"""Who may call: clients, companies and webhook secrets, given and taken by those who may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mhs_ray.auth.clients import ClientVerifier, new_client
from mhs_ray.domain.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError
from mhs_ray.domain.models import ApiClient, Company, Principal, Role
from mhs_ray.services.names import clean_name
from mhs_ray.store.sql.audit import Audit
from mhs_ray.store.sql.clients import Clients
from mhs_ray.store.sql.companies import Companies


class AccessService:
    """Lab Admins decide for their company, operators for every one. Every method raises ForbiddenError."""

    def __init__(self, clients: Clients, companies: Companies, audit: Audit, verifier: ClientVerifier) -> None:
        self._clients, self.companies, self._verifier = clients, companies, verifier
        self.audit = audit

    # ---- clients

    def clients(self, who: Principal, company_id: int | None = None) -> list[ApiClient]:
        """Return a company's clients, newest first."""
        return self._clients.listed(self.company_for(who, company_id))

    def create_client(
        self, who: Principal, name: str, role: Role, company_id: int | None = None
    ) -> tuple[ApiClient, str]:
        """Make a client; return it with its secret, which is kept nowhere."""
        company = self.company_for(who, company_id)
        if role is Role.OPERATOR and who.role is not Role.OPERATOR:
            raise ForbiddenError("only an operator can make an operator")
        self.companies.get(company)
        client_id, secret, hashed = new_client()
        self._clients.add(client_id, company, clean_name(name), role, hashed, who.name)
        return self._clients.get(company, client_id), secret

    def revoke_client(self, who: Principal, client_id: str, company_id: int | None = None) -> ApiClient:
        """End a client for good. Its last minute: other replicas may remember it for so long."""
        company = self.company_for(who, company_id)
        client = self._clients.get(company, client_id)
        if client_id == who.client_id:
            raise ConflictError("a client cannot revoke itself; use another one of the company")
        if client.role is Role.OPERATOR and who.role is not Role.OPERATOR:
            raise ForbiddenError("only an operator can revoke an operator")
        revoked = self._clients.revoke(company, client_id)
        self._verifier.forget(client_id)
        return revoked

    # ---- companies

    def list_companies(self, who: Principal) -> list[Company]:
        """Return every company to an operator."""
        _operator(who)
        return self.companies.listed()

    def create_company(self, who: Principal, name: str, external_id: str | None, enabled: bool) -> Company:
        """Make a company."""
        _operator(who)
        return self.companies.create(clean_name(name), external_id, enabled)

    def update_company(self, who: Principal, company_id: int, values: Mapping[str, Any]) -> Company:
        """Change a company: name, external_id, mhs_enabled, max_active_jobs. Raises NotFoundError."""
        if company_id != who.company_id and who.role is not Role.OPERATOR:
            raise NotFoundError("company", company_id)  # whether there is one is none of their business
        _operator(who)
        if company_id == who.company_id and values.get("mhs_enabled") is False:
            raise ConflictError("an operator cannot switch its own company off: nobody could switch it on again")
        given = dict(values)
        if "name" in given:
            given["name"] = clean_name(given["name"])
        return self.companies.update(company_id, given)

    # ---- webhook

    def new_webhook_secret(self, who: Principal, company_id: int | None = None) -> str:
        """Make what a company's webhook calls are signed with; the one before it stays good until the next."""
        company = self.companies.get(self.company_for(who, company_id))
        if company.external_id is None:
            raise InvalidInputError.at(
                "$.company_id",
                "the company has no external id: an operator sets it to the webhook's `company_id` first",
            )
        return self.companies.new_webhook_secret(company.id)

    def drop_webhook_secrets(self, who: Principal, company_id: int | None = None) -> None:
        """Take no signed call any more."""
        self.companies.drop_webhook_secrets(self.companies.get(self.company_for(who, company_id)).id)

    def company_for(self, who: Principal, company_id: int | None) -> int:
        """Return whose affairs are meant: one's own company's, or any for an operator."""
        if not who.may_administer:
            raise ForbiddenError("only a Lab Admin or an operator may see or change who has access")
        if company_id is None or company_id == who.company_id:
            return who.company_id
        _operator(who)
        return company_id


def _operator(who: Principal) -> None:
    if who.role is not Role.OPERATOR:
        raise ForbiddenError("only an operator may see or change other companies")
