"""``mhs secrets``: keys for a platform that keeps them elsewhere than in its home folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import command
from mhs_ray.domain.errors import ConflictError, InvalidInputError
from mhs_ray.domain.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Keys of a cluster, kept in files or in AWS Secrets Manager.")


def add_to(main: typer.Typer) -> None:
    """Register the commands."""
    command(app, "new")(new)
    command(app, "check")(check)
    main.add_typer(app, name="secrets", rich_help_panel="Clusters")


def new(
    target: Annotated[Path, typer.Argument(help="A file to make: one JSON object. With --directory a folder.")],
    directory: Annotated[bool, typer.Option("--directory", help="A file per key, as Kubernetes mounts them.")] = False,
    database_url: Annotated[
        bool, typer.Option("--database-url", help="Put this machine's MHS_DATABASE_URL in as well.")
    ] = False,
) -> None:
    """Make a fresh set of every key, in files that only you can read. Nothing is printed of them.

    `aws secretsmanager create-secret --name mhs/NAME --secret-string file://TARGET`, then remove the file.
    """
    from mhs_ray.platform.keys import write_private
    from mhs_ray.platform.secrets import DATABASE_URL, new_secrets

    if target.exists():
        raise ConflictError(f"{target} is there already and may be in use; name another one")
    made = new_secrets()
    if database_url:
        url = load_settings().database_url
        if url is None:
            raise InvalidInputError.at("MHS_DATABASE_URL", "is not set; give it for this command")
        made[DATABASE_URL] = url.get_secret_value()
    if directory:
        for name, value in made.items():
            write_private(target / name, value.encode() + b"\n")
    else:
        write_private(target, json.dumps(made, indent=1).encode())
    output.emit({"target": str(target), "names": sorted(made)}, lambda _: output.line(f"{len(made)} keys in {target}"))


def check() -> None:
    """Say where each key of the settings here comes from, and whether the set is whole."""
    from mhs_ray.platform.keys import KEY_NAMES
    from mhs_ray.platform.secrets import DATABASE_URL, given_secrets, keys_of

    settings = load_settings()
    given = given_secrets(settings.secrets)
    if settings.database_url is not None:
        given[DATABASE_URL] = "set"
    keys_of(settings, write=False)  # a running platform's files stay as they are
    home = settings.home / "keys"
    places = {name: "given" if name in given else str(home / name) for name in KEY_NAMES}
    places[DATABASE_URL] = "given" if DATABASE_URL in given else "SQLite in the home folder"

    def show(_: Any) -> None:
        output.facts(places)

    output.emit(places, show)
