"""``mhs init``, ``base-image`` and ``bench``: what needs no running platform."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mhs_ray.cli import output, plain_run, trial
from mhs_ray.cli.command import command
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.settings import load_settings


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(app, rich_help_panel="Making a model")(init)
    command(app, "test", rich_help_panel="Making a model")(trial.try_image)
    command(app, "local-env", rich_help_panel="Making a model")(plain_run.local_env)
    command(app, "base-image", rich_help_panel="Making a model")(base_image)
    command(app, rich_help_panel="The platform on this machine")(bench)


def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="a folder that is empty or does not exist")
    ] = None,
    template: Annotated[str, typer.Option(help="which one to start from; see --list")] = "plain",
    tiles: Annotated[bool, typer.Option("--tiles", help="the same as --template tiles")] = False,
    listed: Annotated[bool, typer.Option("--list", help="tell which templates there are")] = False,
) -> None:
    """Start a model: a folder with main.py, a Dockerfile and a results client.

    Example: mhs init my-model

    Example: mhs init my-model --template torch
    """
    from mhs_ray.templates import TEMPLATES, write_template

    if listed:
        rows = [{"template": name, "what": what} for name, what in TEMPLATES.items()]
        output.emit(rows, lambda r: output.table(r, ("template", "what"), ""))
        return
    if folder is None:
        raise InvalidInputError.at("DIR", "name the folder to make, or ask for --list")
    template = "tiles" if tiles else template
    files = write_template(template, folder)
    document = {"folder": str(folder), "template": template, "files": [str(f) for f in files]}

    def show(_: Any) -> None:
        for file in files:
            output.line(str(folder / file))
        output.note(
            f"next: mhs test --build {folder} --demo-slide; read {folder / 'README.md'}, then put your model into "
            f"{'score_tiles' if template == 'tiles' else 'process_image'}() in {folder / 'main.py'}"
        )

    output.emit(document, show)


def base_image(
    tag: Annotated[str | None, typer.Option(help="its name in podman or Docker")] = None,
    package: Annotated[list[str], typer.Option(help="one more Debian package; can be repeated")] = [],  # noqa: B006
) -> None:
    """Make a Debian base image with Python and slide readers, which needs no registry.

    Use it: docker build --build-arg BASE_IMAGE=localhost/mhs-base:bookworm -t my-docker-image:latest .
    """
    from mhs_ray.engines.build import image_tools
    from mhs_ray.engines.select import pick_engine
    from mhs_ray.platform import dockerd
    from mhs_ray.platform.base_image import DEFAULT_PACKAGES, DEFAULT_TAG, make_base_image

    settings = dockerd.join(load_settings())
    engine = pick_engine(settings.engine, docker_host=settings.docker_host)
    chosen = tag or DEFAULT_TAG
    packages = [*DEFAULT_PACKAGES, *package]
    made = make_base_image(image_tools(engine), settings.home / "cache", chosen, packages, output.note)
    output.emit({"tag": chosen, "id": made, "engine": engine.name}, lambda d: output.line(f"{d['tag']}  {d['id']}"))


def bench(
    name: Annotated[str | None, typer.Argument(help="which one; all are listed when left out")] = None,
) -> None:
    """Measure the platform beside its peers, in the same run.

    Example: mhs bench jobs --json   (one JSON object on the last line)
    """
    from mhs_ray.bench import benchmarks

    known = benchmarks()
    if name is None:
        rows = [{"name": b.name, "measures": b.measures} for b in known.values()]
        output.emit(rows, lambda r: output.table(r, ("name", "measures"), "there are no benchmarks"))
        return
    if name not in known:
        raise InvalidInputError.at("NAME", f"{name!r} is no benchmark; there is: {', '.join(known) or 'none yet'}")
    found = known[name].run(load_settings(), output.note)
    output.emit(found, lambda f: output.line(json.dumps(f, indent=2)))
