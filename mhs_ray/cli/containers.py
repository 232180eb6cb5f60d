"""``mhs container`` and ``mhs algorithm``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import command
from mhs_ray.cli.connect import connect
from mhs_ray.cli.images import Limit, Name
from mhs_ray.client import wire as w
from mhs_ray.domain.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True, help="Runnable containers: an image with an instance type and variables.")
algorithms = typer.Typer(no_args_is_help=True, help='Case algorithms: what a person picks as "AI model".')

ContainerId = Annotated[int, typer.Argument(metavar="CONTAINER", help="id of the runnable container", min=1)]
AlgorithmId = Annotated[int, typer.Argument(metavar="ALGORITHM", help="id of the case algorithm", min=1)]
Env = Annotated[list[str], typer.Option("--env", "-e", metavar="NAME=VALUE", help="a variable; can be repeated")]
SecretEnv = Annotated[
    list[str],
    typer.Option(
        "--secret-env",
        metavar="NAME",
        help="a variable that is never shown again; its value is read from stdin, a line each",
    ),
]
TimeLimit = Annotated[int | None, typer.Option("--time-limit", metavar="SECONDS", help="of running", min=1)]


def _variables(env: list[str], secret: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for text in env:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInputError.at("--env", f"{text!r} is no NAME=VALUE")
        found.append({"name": name, "value": value})
    for name in secret:
        # Not as an argument: what is on the command line, every user of the machine can read.
        value = sys.stdin.readline().removesuffix("\n")
        if not value:
            raise InvalidInputError.at("--secret-env", f"stdin has no line with the value of {name}")
        found.append({"name": name, "value": value, "secret": True})
    return found


def show_container(container: w.Container) -> None:
    """Show one runnable container to a person."""
    env = [f"{v['name']}={'(secret)' if v['secret'] else v['value']}" for v in container["env"]]
    output.facts({
        **container, "env": "  ".join(env), "created_at": output.local_time(container["created_at"]),
        "updated_at": output.local_time(container["updated_at"]),
    })  # fmt: skip


@command(app)
def create(
    image: Annotated[int, typer.Option(help="id of an image that is uploaded")],
    instance_type: Annotated[str, typer.Option(help="e.g. g4dn.xlarge")] = "g4dn.xlarge",
    name: Annotated[str | None, typer.Option(help="display name; made from the image's when left out")] = None,
    env: Env = [],  # noqa: B006 (typer copies it)
    secret_env: SecretEnv = [],  # noqa: B006
    time_limit: TimeLimit = None,
) -> None:
    """Make a runnable container.

    Example: mhs container create --image 3 --instance-type g4dn.xlarge -e THRESHOLD=0.5
    """
    body = {
        "image_id": image, "instance_type": instance_type, "name": name, "env": _variables(env, secret_env),
        "time_limit_s": time_limit,
    }  # fmt: skip
    with connect() as mhs:
        output.emit(mhs.create_container({k: v for k, v in body.items() if v is not None}), show_container)


@command(app, "list")
def list_(name: Name = None, image: int | None = None, limit: Limit = 50) -> None:
    """List runnable containers, newest first."""
    columns = ("id", "name", "image_name", "instance_type", "created_by", "created_at")
    with connect() as mhs:
        found = list(mhs.containers(limit, name=name, image_id=image))
    rows = ({**c, "created_at": output.local_time(c["created_at"])} for c in found)
    output.emit(found, lambda _: output.table(rows, columns, "no containers; make one: mhs container create"))


@command(app)
def show(container: ContainerId) -> None:
    """Show a runnable container; values of secret variables are never shown."""
    with connect() as mhs:
        output.emit(mhs.container(container), show_container)


@command(app)
def update(
    container: ContainerId,
    image: int | None = None,
    instance_type: str | None = None,
    name: str | None = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="replaces all variables")
    ] = None,
    secret_env: SecretEnv = [],  # noqa: B006
    keep_secret: Annotated[
        list[str], typer.Option(metavar="NAME", help="a secret variable that stays as it is beside --env")
    ] = [],  # noqa: B006
    time_limit: TimeLimit = None,
) -> None:
    """Change a runnable container; queued and running jobs keep what they were made with."""
    body: dict[str, Any] = {
        "image_id": image, "instance_type": instance_type, "name": name, "time_limit_s": time_limit,
    }  # fmt: skip
    if env is not None or secret_env or keep_secret:
        kept = [{"name": n, "secret": True} for n in keep_secret]
        body["env"] = [*_variables(env or [], secret_env), *kept]
    given = {k: v for k, v in body.items() if v is not None}
    if not given:
        raise InvalidInputError.at("options", "nothing to change; see `mhs container update --help`")
    with connect() as mhs:
        output.emit(mhs.update_container(container, given), show_container)


@command(app)
def delete(container: ContainerId) -> None:
    """Delete a runnable container that no case algorithm uses."""
    with connect() as mhs:
        mhs.delete_container(container)
    output.emit({"deleted": container}, lambda _: output.line(f"deleted container {container}"))


def show_algorithm(algorithm: w.Algorithm) -> None:
    """Show one case algorithm to a person."""
    output.facts({
        **algorithm, "created_at": output.local_time(algorithm["created_at"]),
        "updated_at": output.local_time(algorithm["updated_at"]),
    })  # fmt: skip


@command(algorithms, "create")
def create_algorithm(
    name: Annotated[str, typer.Argument(help="e.g. 'Mitosis count'")],
    container: Annotated[int | None, typer.Option(help="id of the runnable container")] = None,
    provider: str = "Model Hosting Service",
) -> None:
    """Make a case algorithm.

    Example: mhs algorithm create 'Mitosis count' --container 2
    """
    body = {"name": name, "container_id": container, "provider": provider}
    with connect() as mhs:
        output.emit(mhs.create_algorithm(body), show_algorithm)


@command(algorithms, "list")
def list_algorithms(name: Name = None, limit: Limit = 50) -> None:
    """List case algorithms, newest first."""
    with connect() as mhs:
        found = list(mhs.algorithms(limit, name=name))
    columns = ("id", "name", "provider", "container_id", "container_name")
    output.emit(found, lambda f: output.table(f, columns, "no case algorithms; make one: mhs algorithm create"))


@command(algorithms, "show")
def show_one_algorithm(algorithm: AlgorithmId) -> None:
    """Show a case algorithm."""
    with connect() as mhs:
        output.emit(mhs.algorithm(algorithm), show_algorithm)


@command(algorithms, "update")
def update_algorithm(
    algorithm: AlgorithmId, name: str | None = None, container: int | None = None, provider: str | None = None
) -> None:
    """Change a case algorithm; later requests use it, earlier ones keep what they had."""
    given = {k: v for k, v in (("name", name), ("container_id", container), ("provider", provider)) if v is not None}
    if not given:
        raise InvalidInputError.at("options", "nothing to change; see `mhs algorithm update --help`")
    with connect() as mhs:
        output.emit(mhs.update_algorithm(algorithm, given), show_algorithm)


@command(algorithms, "delete")
def delete_algorithm(algorithm: AlgorithmId) -> None:
    """Delete a case algorithm; its tasks and jobs stay."""
    with connect() as mhs:
        mhs.delete_algorithm(algorithm)
    output.emit({"deleted": algorithm}, lambda _: output.line(f"deleted case algorithm {algorithm}"))
