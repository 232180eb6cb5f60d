"""``mhs audit-sandbox``: try on this node whether its sandbox holds."""

from __future__ import annotations

from typing import Any

import typer
from rich.text import Text

from mhs_ray.cli import output
from mhs_ray.cli.command import FAILED, CommandFailed, command
from mhs_ray.domain.settings import load_settings


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "audit-sandbox", rich_help_panel="The platform on this machine")(audit_sandbox)


def audit_sandbox() -> None:
    """Run a container that tries to get out, and say what held. Exit code 1 when something did not.

    It gets what every job's container gets. Jobs start only on a node where all of it held (see
    MHS_SANDBOX__ALLOW_WEAK); this run's verdict counts for them from now on.
    """
    from mhs_ray.engines.select import pick_engine
    from mhs_ray.platform import dockerd
    from mhs_ray.sandbox.audit.gate import Gate
    from mhs_ray.sandbox.audit.run import audit, summary

    settings = dockerd.join(load_settings())
    engine = pick_engine(settings.engine, docker_host=settings.docker_host)
    output.note(f"trying the sandbox of {engine.name} on this node; takes some seconds")
    checks = audit(engine, runtime=settings.sandbox.runtime)
    faults = Gate(engine, runtime=settings.sandbox.runtime).remember(checks)

    def show(_: Any) -> None:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = ("held   ", "green") if check.ok else ("FAILED ", "bold red")
            output.rich(Text.assemble(mark, f"{check.name:<{width}}  {check.detail}"))
        output.note(
            f"{len(checks) - len(faults)} of {len(checks)} held" + (f"; failed: {', '.join(faults)}" if faults else "")
        )

    output.emit(summary(checks, engine), show)
    if faults:
        raise CommandFailed(FAILED)
