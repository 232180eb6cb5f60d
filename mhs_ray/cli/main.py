"""The entry point of ``mhs``."""

from __future__ import annotations

from typing import Annotated

import typer

from mhs_ray import __version__
from mhs_ray.cli import (
    access,
    audit,
    backup,
    cohorts,
    containers,
    demo,
    images,
    jobs,
    output,
    platform,
    project,
    scans,
    secrets,
    usage,
)
from mhs_ray.cli.command import EXIT_CODES, App, command

app = App(
    name="mhs",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help=(
        "Run your own model containers on whole slide images.\n\n"
        "Start with `mhs doctor`, then `mhs demo`. Commands talk to the platform of this machine (`mhs up`), or to the "
        "one that MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET name.\n\n" + EXIT_CODES
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        output.line(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


platform.add_to(app)
audit.add_to(app)
usage.add_to(app)
backup.add_to(app)
command(app, rich_help_panel="The platform on this machine")(demo.demo)
project.add_to(app)
secrets.add_to(app)
app.add_typer(images.app, name="image", rich_help_panel="Making a model")
app.add_typer(containers.app, name="container", rich_help_panel="Running models")
app.add_typer(containers.algorithms, name="algorithm", rich_help_panel="Running models")
app.add_typer(scans.app, name="scan", rich_help_panel="Running models")
jobs.add_to(app)
app.add_typer(cohorts.app, name="cohort", rich_help_panel="Running models")
access.add_to(app)

if __name__ == "__main__":
    app()
