"""``mhs image``: image definitions and pushes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import FAILED, CommandFailed, command
from mhs_ray.cli.connect import connect
from mhs_ray.client import Client
from mhs_ray.client import wire as w
from mhs_ray.domain.errors import EngineError, NotFoundError
from mhs_ray.domain.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Docker images: create one, push to it, see what came of it.")

ImageId = Annotated[int, typer.Argument(metavar="IMAGE", help="id of the image definition", min=1)]
Limit = Annotated[int, typer.Option(help="at most so many", min=1)]
Name = Annotated[str | None, typer.Option(help="part of the name")]


def show_image(image: w.Image) -> None:
    """Show one image definition to a person."""
    current: dict[str, Any] = dict(image["current"] or {})
    details = current.get("details") or {}
    labels = [f"{name}={value}" for name, value in (details.get("labels") or {}).items()]
    output.facts(
        {
            "id": image["id"],
            "name": image["name"],
            "status": image["status"],
            "failure message": image["failure_message"],
            "digest": current.get("digest"),
            "version": current.get("number"),
            "size": output.size(current.get("size_bytes")),
            "layers": len(details.get("layers") or ()) or None,
            "architecture": details.get("architecture"),
            "entrypoint": " ".join(details.get("entrypoint") or ()),
            "command": " ".join(details.get("cmd") or ()),
            "user": details.get("user"),
            "labels": "  ".join(labels),
            "created by": image["created_by"],
            "created at": output.local_time(image["created_at"]),
            "updated at": output.local_time(image["updated_at"]),
        }
    )
    for warning in details.get("warnings") or ():
        output.note(f"warning: {warning}")


def _row(image: w.Image) -> dict[str, Any]:
    digest = image["current"]["digest"][:19] if image["current"] else ""
    return {**image, "digest": digest, "updated_at": output.local_time(image["updated_at"])}


@command(app)
def create(name: Annotated[str, typer.Argument(help="its name, e.g. 'Mitosis detector'")]) -> None:
    """Make an image definition. Next: `mhs image push`."""
    with connect() as mhs:
        output.emit(mhs.create_image(name), show_image)


@command(app, "list")
def list_(name: Name = None, status: str | None = None, limit: Limit = 50) -> None:
    """List image definitions, newest first."""
    columns = ("id", "name", "status", "digest", "updated_at")
    with connect() as mhs:
        found = list(mhs.images(limit, name=name, status=status))
    output.emit(found, lambda f: output.table(map(_row, f), columns, "no images; make one: mhs image create NAME"))


@command(app)
def show(image: ImageId) -> None:
    """Show an image definition: status, failure message, digest, details."""
    with connect() as mhs:
        output.emit(mhs.image(image), show_image)


@command(app)
def versions(image: ImageId) -> None:
    """List what was pushed to an image definition, newest first."""
    columns = ("number", "digest", "size_bytes", "created_at")
    with connect() as mhs:
        output.emit(mhs.image_versions(image), lambda f: output.table(f, columns, "nothing was pushed yet"))


@command(app)
def instructions(image: ImageId) -> None:
    """Show the Docker Push Instructions: four commands, with a credential good for 12 hours."""
    with connect() as mhs:
        output.emit(mhs.push_instructions(image), _show_instructions)


def _show_instructions(access: w.PushInstructions) -> None:
    for text in access["commands"]:
        output.line(text)
    output.note(f"the credential is good until {output.local_time(access['expires_at'])}")
    for variant in access["variants"]:
        output.note(f"\n{variant['title']}:")
        for text in variant["commands"]:
            output.note(f"  {text}")


@command(app)
def rename(image: ImageId, name: str) -> None:
    """Rename an image definition; versions and containers stay as they are."""
    with connect() as mhs:
        output.emit(mhs.rename_image(image, name), show_image)


@command(app)
def delete(image: ImageId) -> None:
    """Delete an image definition that no container uses, with everything in the registry."""
    with connect() as mhs:
        mhs.delete_image(image)
    output.emit({"deleted": image}, lambda _: output.line(f"deleted image {image}"))


@command(app)
def push(
    image: ImageId,
    local_image: Annotated[str, typer.Argument(help="tag of the image on this machine, e.g. my-docker-image:latest")],
) -> None:
    """Push an image of this machine's podman or Docker, and wait for the platform's verdict.

    Example: mhs image push 3 my-docker-image:latest

    Without a container engine here, prints the four commands to run elsewhere. Exit code 1 when the image is refused;
    its failure message says how to mend it.
    """
    with connect() as mhs:
        found = push_image(mhs, image, local_image)
        output.emit(found, show_image)
        if found["status"] != "uploaded":
            raise CommandFailed(FAILED)


def push_image(mhs: Client, image_id: int, local_image: str) -> w.Image:
    """Push with the engine of this machine and return the image once it was taken in or refused."""
    from mhs_ray.engines.build import image_tools
    from mhs_ray.engines.select import pick_engine
    from mhs_ray.platform import dockerd

    mhs.image(image_id)
    settings = dockerd.join(load_settings())
    try:
        engine = pick_engine(settings.engine, docker_host=settings.docker_host)
    except EngineError as error:
        output.note(f"there is no container engine here ({error}); where there is one, run:")
        for text in mhs.push_instructions(image_id)["commands"]:
            output.note(f"  {text}")
        raise
    tools = image_tools(engine)
    if tools.image_id(local_image) is None:
        raise NotFoundError(
            "image", f"{local_image} in {engine.name}; build it first: {engine.name} build -t {local_image} ."
        )
    access = mhs.push_instructions(image_id)
    before = mhs.image(image_id)
    target = f"{access['registry']}/{access['repository']}:{access['tag']}"
    tools.tag(local_image, target)
    output.note(f"{engine.name} pushes {target}")
    digest = tools.push(target, access["username"], access["password"], tls=access["tls"])
    image = mhs.wait_for_image(before, digest, on_status=lambda status: output.note(f"image {image_id}: {status}"))
    if image["status"] == before["status"]:
        output.note(f"image {image_id}: {image['status']}, as before")
    return image
