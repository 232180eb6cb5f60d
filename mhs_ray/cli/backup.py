"""``mhs backup`` and ``mhs restore``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import command
from mhs_ray.cli.connect import is_running
from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.settings import load_settings

Folder = Annotated[Path, typer.Argument(metavar="DIR")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for function in (backup, restore):
        command(app, rich_help_panel="The platform on this machine")(function)


def backup(
    folder: Folder,
    blobs: Annotated[bool, typer.Option(help="leave them out where the bucket has copies of its own")] = True,
    images: Annotated[bool, typer.Option(help="the registry's; without them users push again")] = True,
) -> None:
    """Copy database, keys, blobs and images of the platform in MHS_HOME to a new folder; it may run meanwhile.

    The folder holds every key and secret of the platform: keep it as you keep those. PostgreSQL needs pg_dump here.

    Example: mhs backup /backup/mhs-2026-03-02
    """
    from mhs_ray.platform import backup as b

    done = b.backup(load_settings(), folder, output.note, blobs=blobs, images=images)
    output.emit(asdict(done), lambda _: output.facts({**asdict(done), "blob_bytes": output.size(done.blob_bytes)}))


def restore(folder: Folder) -> None:
    """Fill an empty MHS_HOME (and an empty PostgreSQL database) from a backup; then start the platform: mhs up.

    Everything is checked before anything is written. Results that were waiting for delivery to Techcyte are asked for
    there first, since they may have been sent after the backup was made.
    """
    from mhs_ray.platform import backup as b

    settings = load_settings()
    if settings.home.exists() and is_running(settings):
        raise ConflictError(f"a platform runs in {settings.home}; stop it with `mhs down`, and use an empty MHS_HOME")
    done = b.restore(settings, folder, output.note)
    output.emit(asdict(done), lambda _: output.facts({**asdict(done), "blob_bytes": output.size(done.blob_bytes)}))
