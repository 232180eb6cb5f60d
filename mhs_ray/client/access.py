"""Who may call, who did what, and what was used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, BinaryIO, cast
from urllib.parse import quote

from mhs_ray.client import wire as w
from mhs_ray.client.calls import Calls


class AccessCalls(Calls):
    """Clients, companies, the audit, and usage. company_id: another company than the caller's, for operators."""

    async def me(self) -> dict[str, Any]:
        """Return who calls: client, role, company."""
        return dict(await self._get("/v1/me"))

    async def clients(self, company_id: int | None = None) -> list[dict[str, Any]]:
        """Return a company's API clients, newest first."""
        return list(await self._get("/v1/clients", company_id=company_id))

    async def create_client(self, name: str, role: str, company_id: int | None = None) -> dict[str, Any]:
        """Make an API client; return `client` and `client_secret`, which is never shown again."""
        body = {"name": name, "role": str(role), "company_id": company_id}
        return dict(await self._post("/v1/clients", body))

    async def revoke_client(self, client_id: str, company_id: int | None = None) -> dict[str, Any]:
        """End an API client for good."""
        path = f"/v1/clients/{quote(client_id, safe='')}/revoke"
        answer = await self.http.send("POST", path, params={"company_id": company_id}, repeatable=True)
        return dict(answer.json())

    async def companies(self) -> list[dict[str, Any]]:
        """Return every company, by name; for operators."""
        return list(await self._get("/v1/companies"))

    async def create_company(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a company; for operators. body: name, external_id, mhs_enabled."""
        return dict(await self._post("/v1/companies", dict(body)))

    async def update_company(self, company_id: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Change a company, its feature flag `mhs_enabled` included; for operators."""
        return dict(await self._patch(f"/v1/companies/{company_id}", dict(values)))

    async def create_webhook_secret(self, company_id: int | None = None) -> str:
        """Make the secret that a company's webhook calls are signed with."""
        answer = await self.http.send("POST", "/v1/webhook-secret", params={"company_id": company_id})
        return str(answer.json()["secret"])

    async def remove_webhook_secret(self, company_id: int | None = None) -> None:
        """Take no signed call any more."""
        await self.http.send("DELETE", "/v1/webhook-secret", params={"company_id": company_id})

    def audit(
        self, limit: int | None = None, *, client_id: str | None = None, company_id: int | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield who did what, newest first."""
        return self._pages("/v1/audit", limit, client_id=client_id, company_id=company_id)

    async def usage(self, since: str | None = None, until: str | None = None) -> w.Usage:
        """Return GPU-seconds by day, company and instance type. since, until: days like ``2026-03-01``."""
        return cast(w.Usage, await self._get("/v1/usage", since=since, until=until))

    async def save_usage(self, out: BinaryIO, since: str | None = None, until: str | None = None) -> int:
        """Write the same as Parquet; returns the number of bytes."""
        params = {"since": since, "until": until, "format": "parquet"}
        return out.write((await self.http.send("GET", "/v1/usage", params=params)).content)
