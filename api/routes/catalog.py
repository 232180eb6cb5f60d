"""Instance types, images, runnable containers and case algorithms."""

from __future__ import annotations

from fastapi import APIRouter

from api.audited import AuditedRoute
from api.deps import CoreDep, CursorQuery, IdPath, IdQuery, LimitQuery, NameQuery, WhoDep, WriterDep, page_out, problems
from api.schemas.base import PageOut
from api.schemas.catalog import (
    AlgorithmIn,
    AlgorithmOut,
    AlgorithmPatch,
    ContainerIn,
    ContainerOut,
    ContainerPatch,
    EnvVarIn,
    ImageIn,
    ImageOut,
    ImageVersionOut,
    InstanceTypeOut,
    PushInstructionsOut,
    PushVariantOut,
)
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.models import ImageStatus
from mhs_ray.registry.instructions import push_instructions, push_variants

router = APIRouter(prefix="/v1", route_class=AuditedRoute, responses=problems())


@router.get("/instance-types", tags=["instance types"], summary="List the instance types")
def list_instance_types(_who: WhoDep) -> list[InstanceTypeOut]:
    """What a runnable container can ask for."""
    return [InstanceTypeOut.model_validate(t) for t in INSTANCE_TYPES.values()]


# ------------------------------------------------------------ images


@router.get("/images", tags=["images"], summary="List image definitions")
def list_images(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    name: NameQuery = None,
    status: ImageStatus | None = None,
) -> PageOut[ImageOut]:
    """Newest first."""
    page = core.images.images.page(who.company_id, cursor=cursor, limit=limit, name=name, status=status)
    return PageOut[ImageOut].model_validate(page_out(page))


@router.post("/images", tags=["images"], status_code=201, summary="Create an image definition")
def create_image(core: CoreDep, who: WriterDep, body: ImageIn) -> ImageOut:
    """Push to it next: see `/v1/images/{id}/push-instructions`."""
    return ImageOut.model_validate(core.images.create(who, body.name))


@router.get("/images/{image_id}", tags=["images"], summary="Show an image definition", responses=problems(404))
def get_image(core: CoreDep, who: WhoDep, image_id: IdPath) -> ImageOut:
    """Status, failure message and the version that runs."""
    return ImageOut.model_validate(core.images.images.get(who.company_id, image_id))


@router.patch("/images/{image_id}", tags=["images"], summary="Rename an image definition", responses=problems(404))
def rename_image(core: CoreDep, who: WriterDep, image_id: IdPath, body: ImageIn) -> ImageOut:
    """Versions and containers stay as they are."""
    return ImageOut.model_validate(core.images.rename(who, image_id, body.name))


@router.delete(
    "/images/{image_id}", tags=["images"], status_code=204, summary="Delete an image", responses=problems(404, 409, 502)
)
def delete_image(core: CoreDep, who: WriterDep, image_id: IdPath) -> None:
    """Refused while a runnable container uses it."""
    core.images.delete(who, image_id)


@router.get(
    "/images/{image_id}/versions", tags=["images"], summary="List the versions of an image", responses=problems(404)
)
def list_versions(core: CoreDep, who: WhoDep, image_id: IdPath) -> list[ImageVersionOut]:
    """Newest first; jobs name the digest they ran."""
    return [ImageVersionOut.model_validate(v) for v in core.images.images.versions(who.company_id, image_id)]


@router.get(
    "/images/{image_id}/push-instructions",
    tags=["images"],
    summary="Docker Push Instructions",
    responses=problems(404),
)
def get_push_instructions(core: CoreDep, who: WriterDep, image_id: IdPath) -> PushInstructionsOut:
    """Four commands with a fresh credential for this image's own repository, good for 12 hours."""
    access = core.images.push_access(who, image_id)
    return PushInstructionsOut(
        registry=access.registry,
        repository=access.repository,
        tag=access.tag,
        username=access.username,
        password=access.password,
        expires_at=access.expires_at,
        tls=access.tls,
        commands=push_instructions(access),
        variants=[PushVariantOut(title=v.title, commands=list(v.commands)) for v in push_variants(access)],
    )


# ------------------------------------------------------------ runnable containers


def _env(items: list[EnvVarIn], kept: dict[str, str] | None = None) -> list[EnvVar]:
    faults, env = [], []
    for i, var in enumerate(items):
        value = var.value if var.value is not None else (kept or {}).get(var.name) if var.secret else None
        if value is None:
            faults.append(Fault(f"$.env[{i}].value", "is missing"))
        else:
            env.append(EnvVar(var.name, value, var.secret))
    if faults:
        raise InvalidInputError(faults)
    return env


@router.get("/containers", tags=["containers"], summary="List runnable containers")
def list_containers(
    core: CoreDep,
    who: WhoDep,
    cursor: CursorQuery = None,
    limit: LimitQuery = 50,
    name: NameQuery = None,
    image_id: IdQuery = None,
) -> PageOut[ContainerOut]:
    """Newest first."""
    page = core.containers.containers.page(who.company_id, cursor=cursor, limit=limit, name=name, image_id=image_id)
    return PageOut[ContainerOut].model_validate(page_out(page.map(ContainerOut.of)))


@router.post("/containers", tags=["containers"], status_code=201, summary="Create a runnable container")
def create_container(core: CoreDep, who: WriterDep, body: ContainerIn) -> ContainerOut:
    """An uploaded image, an instance type, environment variables and limits."""
    made = core.containers.create(
        who,
        image_id=body.image_id,
        instance_type=body.instance_type,
        name=body.name,
        env=_env(body.env),
        time_limit_s=body.time_limit_s,
        retry_exit_codes=body.retry_exit_codes,
        max_model_retries=body.max_model_retries,
    )
    return ContainerOut.of(made)


@router.get("/containers/{container_id}", tags=["containers"], summary="Show a container", responses=problems(404))
def get_container(core: CoreDep, who: WhoDep, container_id: IdPath) -> ContainerOut:
    """Values of secret variables are never shown."""
    return ContainerOut.of(core.containers.containers.get(who.company_id, container_id))


@router.patch("/containers/{container_id}", tags=["containers"], summary="Change a container", responses=problems(404))
def update_container(core: CoreDep, who: WriterDep, container_id: IdPath, body: ContainerPatch) -> ContainerOut:
    """Queued and running jobs keep what they were made with."""
    values = body.model_dump(exclude_unset=True, exclude={"env"})
    if missing := [name for name, value in values.items() if value is None]:
        raise InvalidInputError([Fault(f"$.{name}", "cannot be null; leave it out to keep it") for name in missing])
    env = None
    if body.env is not None:
        env = _env(body.env, dict(core.containers.kept_secrets(who, container_id)))
    return ContainerOut.of(core.containers.update(who, container_id, values, env))


@router.delete(
    "/containers/{container_id}",
    tags=["containers"],
    status_code=204,
    summary="Delete a container",
    responses=problems(404, 409),
)
def delete_container(core: CoreDep, who: WriterDep, container_id: IdPath) -> None:
    """Refused while a case algorithm uses it."""
    core.containers.containers.delete(who.company_id, container_id)


# ------------------------------------------------------------ case algorithms


@router.get("/algorithms", tags=["case algorithms"], summary="List case algorithms")
def list_algorithms(
    core: CoreDep, who: WhoDep, cursor: CursorQuery = None, limit: LimitQuery = 50, name: NameQuery = None
) -> PageOut[AlgorithmOut]:
    """Newest first."""
    page = core.algorithms.algorithms.page(who.company_id, cursor=cursor, limit=limit, name=name)
    return PageOut[AlgorithmOut].model_validate(page_out(page))


@router.post("/algorithms", tags=["case algorithms"], status_code=201, summary="Create a case algorithm")
def create_algorithm(core: CoreDep, who: WriterDep, body: AlgorithmIn) -> AlgorithmOut:
    """Hang a runnable container on a name that people pick as "AI model"."""
    return AlgorithmOut.model_validate(core.algorithms.create(who, body.name, body.provider, body.container_id))


@router.get(
    "/algorithms/{algorithm_id}", tags=["case algorithms"], summary="Show a case algorithm", responses=problems(404)
)
def get_algorithm(core: CoreDep, who: WhoDep, algorithm_id: IdPath) -> AlgorithmOut:
    """One case algorithm."""
    return AlgorithmOut.model_validate(core.algorithms.algorithms.get(who.company_id, algorithm_id))


@router.patch(
    "/algorithms/{algorithm_id}", tags=["case algorithms"], summary="Change a case algorithm", responses=problems(404)
)
def update_algorithm(core: CoreDep, who: WriterDep, algorithm_id: IdPath, body: AlgorithmPatch) -> AlgorithmOut:
    """Later requests use it; earlier ones keep what they had."""
    values = body.model_dump(exclude_unset=True)
    if missing := [name for name in ("name", "provider") if name in values and values[name] is None]:
        raise InvalidInputError([Fault(f"$.{name}", "cannot be null; leave it out to keep it") for name in missing])
    return AlgorithmOut.model_validate(core.algorithms.update(who, algorithm_id, values))


@router.delete(
    "/algorithms/{algorithm_id}",
    tags=["case algorithms"],
    status_code=204,
    summary="Delete a case algorithm",
    responses=problems(404),
)
def delete_algorithm(core: CoreDep, who: WriterDep, algorithm_id: IdPath) -> None:
    """Its tasks and jobs stay."""
    core.algorithms.algorithms.delete(who.company_id, algorithm_id)
