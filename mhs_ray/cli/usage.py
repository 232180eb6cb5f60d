"""``mhs usage``: GPU-seconds for bills."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import command
from mhs_ray.cli.connect import connect
from mhs_ray.client import wire as w
from mhs_ray.domain.errors import InvalidInputError

Day = Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="a day in UTC, included")]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, rich_help_panel="The platform on this machine")(usage)


def usage(
    since: Day = None,
    until: Day = None,
    everybody: Annotated[bool, typer.Option("--all", help="of every company; asks as the operator")] = False,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="a .parquet file to write instead")] = None,
) -> None:
    """Show GPU-seconds by day, company and instance type: of your company, or of all.

    An attempt counts on the day it ended. platform_gpu_s is the part that failures of the platform wasted: leave it
    out of a bill.

    Example: mhs usage --all --since 2026-03-01 --until 2026-03-31 -o march.parquet
    """
    if out is not None and out.suffix != ".parquet":
        raise InvalidInputError.at("--output", f"{out} must end with .parquet")
    with connect(operator=everybody) as mhs:
        if out is None:
            output.emit(mhs.usage(since, until), _show)
            return
        part = out.with_name(f".{out.name}.part")
        try:
            with part.open("wb") as file:
                size = mhs.save_usage(file, since, until)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    output.emit({"file": str(out), "bytes": size}, lambda _: output.note(f"{out}: {output.size(size)}"))


def _show(found: w.Usage) -> None:
    columns = ("day", "company", "instance_type", "attempts", "jobs", "failed", "gpu_s", "platform_gpu_s")
    output.table(found["items"], columns, "nothing ended in this time")
    total = sum(row["gpu_s"] for row in found["items"])
    output.note(f"{found['since']} to {found['until']}: {total / 3600:.2f} GPU-hours")
