"""Case Algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.console.faults import by_field
from api.console.images import CursorFilter, NameFilter, older
from api.console.pages import ConsoleRoute, go, page
from api.console.session import Form, VisitorDep, WriteDep
from api.deps import CoreDep, IdPath
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.models import Algorithm, Provider
from mhs_ray.services.core import Core

router = APIRouter(prefix="/console/algorithms", include_in_schema=False, route_class=ConsoleRoute)


@dataclass(frozen=True, slots=True)
class _Fields:
    name: str = ""
    provider: str = Provider.MHS.value
    container_id: str = ""


def _shared(core: Core, company: int, fields: _Fields, faults: dict[str, str] | None) -> dict[str, Any]:
    containers = core.containers.containers.page(company, cursor=None, limit=500, name=None, image_id=None).items
    return {"f": fields, "faults": faults, "providers": [p.value for p in Provider], "containers": containers}


def _read(form: Form) -> tuple[_Fields, Provider, int | None]:
    """Return the form as it was typed, and its values. A container is read for the provider that runs one only."""
    fields = _Fields(form.text("name"), form.text("provider"), form.text("container_id"))
    provider = next((p for p in Provider if p.value == fields.provider), None)
    if provider is None:
        raise InvalidInputError.at("$.provider", "choose one of the providers")
    chosen = fields.container_id if provider is Provider.MHS else ""
    return fields, provider, int(chosen) if chosen.isascii() and chosen.isdigit() else None


@router.get("")
def algorithms(
    request: Request, core: CoreDep, seen: VisitorDep, name: NameFilter = "", cursor: CursorFilter = None,
    container: Annotated[str, Query(max_length=20)] = "",
) -> Response:  # fmt: skip
    """The list. container: opens the form for a new one with this container chosen."""
    fields = _Fields(container_id=container)
    return _list(request, core, seen.who.company_id, name, cursor, fields, opened=bool(container))


def _list(
    request: Request, core: Core, company: int, name: str, cursor: str | None, fields: _Fields,
    faults: dict[str, str] | None = None, *, opened: bool = False,
) -> Response:  # fmt: skip
    found = core.algorithms.algorithms.page(company, cursor=cursor, limit=50, name=name.strip() or None)
    return page(
        request, "algorithms.html", 422 if faults else 200, page=found, name=name, open=opened or bool(faults),
        older=older("/console/algorithms", found.next_cursor, name=name), **_shared(core, company, fields, faults),
    )  # fmt: skip


@router.post("")
def create(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Make one."""
    fields = _Fields(write.form.text("name"), write.form.text("provider"), write.form.text("container_id"))
    try:
        fields, provider, container_id = _read(write.form)
        made = core.algorithms.create(write.who, fields.name, provider, container_id)
    except InvalidInputError as error:
        return _list(request, core, write.who.company_id, "", None, fields, by_field(error))
    return go(f"/console/algorithms/{made.id}", "Created. It can be picked as AI model on any scan.")


@router.get("/{algorithm_id}")
def algorithm(request: Request, core: CoreDep, seen: VisitorDep, algorithm_id: IdPath) -> Response:
    """One case algorithm."""
    return _detail(request, core, core.algorithms.algorithms.get(seen.who.company_id, algorithm_id))


def _detail(
    request: Request, core: Core, found: Algorithm, fields: _Fields | None = None, faults: dict[str, str] | None = None
) -> Response:
    fields = fields or _Fields(found.name, found.provider.value, str(found.container_id or ""))
    shared = _shared(core, found.company_id, fields, faults)
    return page(request, "algorithm.html", 422 if faults else 200, algorithm=found, **shared)


@router.post("/{algorithm_id}")
def update(request: Request, core: CoreDep, write: WriteDep, algorithm_id: IdPath) -> Response:
    """Change it; earlier requests keep what they had."""
    fields = _Fields(write.form.text("name"), write.form.text("provider"), write.form.text("container_id"))
    try:
        fields, provider, container_id = _read(write.form)
        values = {"name": fields.name, "provider": provider, "container_id": container_id}
        core.algorithms.update(write.who, algorithm_id, values)
    except InvalidInputError as error:
        found = core.algorithms.algorithms.get(write.who.company_id, algorithm_id)
        return _detail(request, core, found, fields, by_field(error))
    return go(f"/console/algorithms/{algorithm_id}", "Saved.")


@router.post("/{algorithm_id}/delete")
def delete(request: Request, core: CoreDep, write: WriteDep, algorithm_id: IdPath) -> Response:
    """Hide it; its jobs stay."""
    found = core.algorithms.algorithms.get(write.who.company_id, algorithm_id)
    core.algorithms.algorithms.delete(write.who.company_id, algorithm_id)
    return go("/console/algorithms", f"{found.name} is deleted.")
