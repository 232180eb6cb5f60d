"""Docker Images."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from api.console.faults import by_field
from api.console.pages import ConsoleRoute, go, page
from api.console.session import VisitorDep, WriteDep
from api.deps import CoreDep, IdPath
from mhs_ray.domain.errors import ConflictError, InvalidInputError
from mhs_ray.domain.models import Image, ImageStatus
from mhs_ray.registry.instructions import push_instructions, push_variants
from mhs_ray.services.core import Core

router = APIRouter(prefix="/console/images", include_in_schema=False, route_class=ConsoleRoute)
NameFilter = Annotated[str, Query(max_length=200)]
CursorFilter = Annotated[str | None, Query(max_length=100)]
STEPS = ("Build", "Tag", "Log in", "Push")


def older(path: str, cursor: str | None, **filters: object) -> str:
    """Return the address of the next page of a list."""
    given = {k: v for k, v in filters.items() if v not in ("", None)}
    return f"{path}?{urlencode({**given, 'cursor': cursor or ''})}"


@router.get("")
def images(
    request: Request,
    core: CoreDep,
    seen: VisitorDep,
    name: NameFilter = "",
    status: str = "",
    cursor: CursorFilter = None,
) -> Response:
    """The list."""
    return _list(request, core, seen.who.company_id, name, status, cursor)


def _list(
    request: Request, core: Core, company: int, name: str = "", status: str = "", cursor: str | None = None,
    *, typed: str = "", faults: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    status = status if status in set(ImageStatus) else ""
    found = core.images.images.page(company, cursor=cursor, limit=50, name=name.strip() or None, status=status or None)
    return page(
        request, "images.html", 422 if faults else 200, page=found, name=name, status=status,
        statuses=list(ImageStatus),
        older=older("/console/images", found.next_cursor, name=name, status=status), typed=typed, faults=faults,
    )  # fmt: skip


@router.post("")
def create(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Make a definition; its page has the push instructions."""
    try:
        image = core.images.create(write.who, write.form.text("name"))
    except InvalidInputError as error:
        typed = write.form.text("name")
        return _list(request, core, write.who.company_id, typed=typed, faults=by_field(error))
    return go(f"/console/images/{image.id}", "Created. Push to it next: open Docker Push Instructions.")


@router.get("/{image_id}")
def image(request: Request, core: CoreDep, seen: VisitorDep, image_id: IdPath) -> Response:
    """One definition."""
    return _detail(request, core, core.images.images.get(seen.who.company_id, image_id))


def _detail(
    request: Request, core: Core, image: Image, typed: str = "", faults: dict[str, str] | None = None
) -> Response:
    used = core.containers.containers.page(image.company_id, cursor=None, limit=100, name=None, image_id=image.id)
    versions = core.images.images.versions(image.company_id, image.id)
    return page(
        request, "image.html", 422 if faults else 200, image=image, containers=used.items, versions=versions,
        typed=typed, faults=faults,
    )  # fmt: skip


@router.post("/{image_id}/push")
def push(request: Request, core: CoreDep, write: WriteDep, image_id: IdPath) -> Response:
    """Docker Push Instructions, with a fresh credential."""
    access = core.images.push_access(write.who, image_id)
    steps = list(zip(STEPS, push_instructions(access), strict=True))
    return page(request, "_push.html", access=access, steps=steps, variants=push_variants(access))


@router.post("/{image_id}/rename")
def rename(request: Request, core: CoreDep, write: WriteDep, image_id: IdPath) -> Response:
    """Give it another name."""
    try:
        core.images.rename(write.who, image_id, write.form.text("name"))
    except InvalidInputError as error:
        image = core.images.images.get(write.who.company_id, image_id)
        return _detail(request, core, image, write.form.text("name"), by_field(error))
    return go(f"/console/images/{image_id}", "Renamed.")


@router.post("/{image_id}/delete")
def delete(request: Request, core: CoreDep, write: WriteDep, image_id: IdPath) -> Response:
    """Remove one that nothing uses."""
    image = core.images.images.get(write.who.company_id, image_id)
    try:
        core.images.delete(write.who, image_id)
    except ConflictError as error:
        return _detail(request, core, image, image.name, by_field(error))
    return go("/console/images", f"{image.name} is deleted.")
