"""Runnable Containers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.console.faults import by_field
from api.console.images import CursorFilter, NameFilter, older
from api.console.pages import ConsoleRoute, go, page
from api.console.session import Form, VisitorDep, Write, WriteDep
from api.deps import CoreDep, IdPath
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import ConflictError, Fault, InvalidInputError
from mhs_ray.domain.models import Container, Image, Principal, Priority, Provider
from mhs_ray.domain.tile_feed import VARIABLE
from mhs_ray.services.core import Core
from mhs_ray.services.submissions import from_api
from mhs_ray.store.sql.overview import Overview

router = APIRouter(prefix="/console/containers", include_in_schema=False, route_class=ConsoleRoute)


@dataclass(frozen=True, slots=True)
class _Row:
    """A variable as the form shows it. kept: a secret whose value stays when its field is left empty."""

    name: str
    value: str
    secret: bool
    kept: bool = False


@dataclass(frozen=True, slots=True)
class _Fields:
    """The form's fields as text."""

    name: str = ""
    image_id: str = ""
    instance_type: str = "g4dn.xlarge"
    env: Sequence[_Row] = ()
    time_limit_min: str = ""
    retry_exit_codes: str = ""
    max_model_retries: str = "0"
    tiles: str = ""


@router.get("")
def containers(
    request: Request,
    core: CoreDep,
    seen: VisitorDep,
    name: NameFilter = "",
    image: str = "",
    cursor: CursorFilter = None,
) -> Response:
    """The list."""
    image_id = int(image) if image.isascii() and image.isdigit() else None
    company = seen.who.company_id
    found = core.containers.containers.page(
        company, cursor=cursor, limit=50, name=name.strip() or None, image_id=image_id
    )
    return page(
        request, "containers.html", page=found, name=name, image=image_id, images=_images(core, company),
        older=older("/console/containers", found.next_cursor, name=name, image=image),
    )  # fmt: skip


def _images(core: Core, company: int) -> list[Image]:
    return core.images.images.page(company, cursor=None, limit=500, name=None, status=None).items


@router.get("/new")
def new(
    request: Request, core: CoreDep, seen: VisitorDep, image: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    """The form for a new one."""
    limit = _minutes(core.settings.jobs.max_time_limit.total_seconds())
    return _form(request, core, seen.who, _Fields(image_id=image, time_limit_min=limit), None, None)


def _form(
    request: Request, core: Core, who: Principal, fields: _Fields, container: Container | None,
    faults: dict[str, str] | None,
) -> Response:  # fmt: skip
    return page(
        request, "container_form.html", 422 if faults else 200, container=container, f=fields, faults=faults,
        images=_images(core, who.company_id), max_minutes=_minutes(core.settings.jobs.max_time_limit.total_seconds()),
    )  # fmt: skip


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g}"


def _read(form: Form, kept: dict[str, str]) -> tuple[_Fields, dict[str, Any], list[EnvVar], list[Fault]]:
    """Return the form as it was typed, the service's values, the variables, and what cannot be read at all."""
    faults: list[Fault] = []
    rows: list[_Row] = []
    env: list[EnvVar] = []
    indices = sorted({int(k.split(".")[1]) for k in form if k.startswith("env.") and k.split(".")[1].isdigit()})
    for i in indices:
        name, value = form.text(f"env.{i}.name"), form.get(f"env.{i}.value", "")
        secret = f"env.{i}.secret" in form
        if not name and not value:
            continue
        stays = secret and not value and name in kept
        # Of a secret nothing goes back into the page, also when another field is wrong.
        rows.append(_Row(name, "" if secret else value, secret, stays))
        if secret and not value and not stays:
            faults.append(Fault(f"$.env[{len(env)}].value", "a secret needs its value"))
        env.append(EnvVar(name, kept[name] if stays else value, secret))
    tiles = form.text("tiles")
    if tiles:  # a variable like the others, at their end: that is how its faults find their field
        env.append(EnvVar(VARIABLE, tiles))
    fields = _Fields(
        form.text("name"), form.text("image_id"), form.text("instance_type"), tuple(rows),
        form.text("time_limit_min"), form.text("retry_exit_codes"), form.text("max_model_retries"), tiles,
    )  # fmt: skip
    values: dict[str, Any] = {"instance_type": fields.instance_type}
    if fields.image_id.isascii() and fields.image_id.isdigit():
        values["image_id"] = int(fields.image_id)
    else:
        faults.append(Fault("$.image_id", "choose an image"))
    try:
        values["time_limit_s"] = round(60 * float(fields.time_limit_min))
    except (ValueError, OverflowError):
        faults.append(Fault("$.time_limit_s", "give the time limit in minutes, for example 90"))
    try:
        values["retry_exit_codes"] = [int(c) for c in fields.retry_exit_codes.replace(",", " ").split()]
    except ValueError:
        faults.append(Fault("$.retry_exit_codes", "give numbers, for example 75, 76"))
    try:
        values["max_model_retries"] = int(fields.max_model_retries or "0")
    except ValueError:
        faults.append(Fault("$.max_model_retries", "give a whole number"))
    return fields, values, env, faults


def _is_tiles(var: EnvVar) -> bool:
    return var.name == VARIABLE and not var.secret


def _faults(error: InvalidInputError, fields: _Fields) -> dict[str, str]:
    last = f"$.env[{len(fields.env)}]"
    return by_field(error, {f"{last}.value": "tiles", f"{last}.name": "tiles"} if fields.tiles else None)


@router.post("")
def create(request: Request, core: CoreDep, write: WriteDep) -> Response:
    """Make one."""
    fields, values, env, faults = _read(write.form, {})
    try:
        if faults:
            raise InvalidInputError(faults)
        made = core.containers.create(write.who, name=fields.name or None, env=env, **values)
    except InvalidInputError as error:
        return _form(request, core, write.who, fields, None, _faults(error, fields))
    return go(f"/console/containers/{made.id}", "Created.")


@router.get("/{container_id}")
def container(request: Request, core: CoreDep, seen: VisitorDep, container_id: IdPath) -> Response:
    """One container."""
    return _detail(request, core, core.containers.containers.get(seen.who.company_id, container_id))


def _detail(request: Request, core: Core, found: Container, faults: dict[str, str] | None = None) -> Response:
    company = found.company_id
    algorithms, jobs = Overview(core.db).dependents(company, found.id)
    scans = core.scans.scans.page(company, cursor=None, limit=200, name=None, status="ready", number=None)
    return page(
        request, "container.html", 422 if faults else 200, container=found, algorithms=algorithms, jobs=jobs,
        image=core.images.images.get(company, found.image_id), scans=scans.items, faults=faults,
        versions=core.images.images.versions(company, found.image_id), test_name=_test_name(found),
    )  # fmt: skip


def _test_name(container: Container) -> str:
    return f"Test of {container.name}"[:200]


@router.get("/{container_id}/edit")
def edit(request: Request, core: CoreDep, seen: VisitorDep, container_id: IdPath) -> Response:
    """The form, filled in."""
    found = core.containers.containers.get(seen.who.company_id, container_id)
    fields = _Fields(
        found.name, str(found.image_id), found.instance_type,
        tuple(
            _Row(v.name, "" if v.secret else v.value, v.secret, v.secret) for v in found.env if not _is_tiles(v)
        ),
        _minutes(found.time_limit_s), ", ".join(map(str, found.retry_exit_codes)), str(found.max_model_retries),
        next((v.value for v in found.env if _is_tiles(v)), ""),
    )  # fmt: skip
    return _form(request, core, seen.who, fields, found, None)


@router.post("/{container_id}/edit")
def update(request: Request, core: CoreDep, write: WriteDep, container_id: IdPath) -> Response:
    """Change it; queued and running jobs keep what they were made with."""
    found = core.containers.containers.get(write.who.company_id, container_id)
    kept = dict(core.containers.kept_secrets(write.who, container_id))
    fields, values, env, faults = _read(write.form, kept)
    try:
        if faults:
            raise InvalidInputError(faults)
        core.containers.update(write.who, container_id, {**values, "name": fields.name}, env)
    except InvalidInputError as error:
        return _form(request, core, write.who, fields, found, _faults(error, fields))
    return go(f"/console/containers/{container_id}", "Saved. Jobs that were made before keep what they had.")


@router.post("/{container_id}/delete")
def delete(request: Request, core: CoreDep, write: WriteDep, container_id: IdPath) -> Response:
    """Remove one that no case algorithm uses."""
    found = core.containers.containers.get(write.who.company_id, container_id)
    try:
        core.containers.containers.delete(write.who.company_id, container_id)
    except ConflictError as error:
        return _detail(request, core, found, by_field(error))
    return go("/console/containers", f"{found.name} is deleted.")


@router.post("/{container_id}/test")
async def test(request: Request, core: CoreDep, write: WriteDep, container_id: IdPath) -> Response:
    """Run it on one scan, through a case algorithm that has it; one is made where there is none."""
    found, algorithm = await run_in_threadpool(_algorithm_for, core, write, container_id)
    scan = write.form.text("scan")
    try:
        if not (scan.isascii() and scan.isdigit()):
            raise InvalidInputError.at("$.scan_ids", "choose a scan")
        submission = from_api(
            write.who, host=core.settings.host, algorithm_id=algorithm, algorithm=None, scan_ids=[int(scan)],
            task_id=None, case_id=None, priority=Priority.RESEARCH, description=f"Test of the container {found.name}",
        )  # fmt: skip
        done = await request.app.state.intake.submit(submission)
    except InvalidInputError as error:
        return await run_in_threadpool(_detail, request, core, found, by_field(error))
    return go(f"/console/jobs/{done.job_ids[0]}")


def _algorithm_for(core: Core, write: Write, container_id: int) -> tuple[Container, int]:
    found = core.containers.containers.get(write.who.company_id, container_id)
    users, _ = Overview(core.db).dependents(write.who.company_id, container_id)
    if users:
        return found, users[0][0]
    return found, core.algorithms.create(write.who, _test_name(found), Provider.MHS, container_id).id
