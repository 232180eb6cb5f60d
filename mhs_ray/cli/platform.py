"""``mhs up``, ``down``, ``status``, ``doctor``: the platform on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import FAILED, UNREACHABLE, CommandFailed, NotRunningError, command
from mhs_ray.cli.connect import connect, connect_home, is_running
from mhs_ray.client.errors import UnreachableError
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.settings import client_environment, load_settings
from mhs_ray.platform.endpoints import Endpoints


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    panel = {"rich_help_panel": "The platform on this machine"}
    command(app, **panel)(up)
    command(app, **panel)(down)
    command(app, **panel)(upgrade)
    command(app, **panel)(status)
    command(app, **panel)(doctor)


def up() -> None:
    """Start the platform on this machine and wait until it is ready.

    Starts Ray, the API, the dispatcher, the image registry and the blob server, all on loopback. What runs already
    stays as it is. Everything is kept below MHS_HOME.
    """
    from mhs_ray.platform import up as platform

    settings = load_settings()
    endpoints = platform.up(settings, output.note)
    document = {"running": True, "home": str(settings.home), **_addresses(endpoints)}

    def show(_: Any) -> None:
        output.facts({"console": f"{endpoints.api_url}/console/", "API": endpoints.api_url,
                      "API pages": f"{endpoints.api_url}/docs",
                      "Ray dashboard": endpoints.dashboard_url, "registry": endpoints.registry,
                      "home": str(settings.home)})  # fmt: skip
        output.note("stop it with: mhs down")

    output.emit(document, show)


def _addresses(endpoints: Endpoints) -> dict[str, str]:
    return {
        "api_url": endpoints.api_url, "dashboard_url": endpoints.dashboard_url, "registry": endpoints.registry,
        "blobs_url": endpoints.blobs_url, "ray_address": endpoints.ray_address,
    }  # fmt: skip


def down() -> None:
    """Stop the platform on this machine; running jobs end, everything stored stays."""
    from mhs_ray.platform import dockerd
    from mhs_ray.platform import up as platform

    settings = dockerd.join(load_settings())
    stopped = platform.down(settings, output.note) if settings.home.exists() else False
    dockerd.stop(settings)
    output.emit({"stopped": stopped}, lambda _: output.line("stopped" if stopped else "nothing was running"))


def upgrade() -> None:
    """Put this version in the place of the running one while jobs run: the API, the dispatcher and the registrar.

    Install the new version first, where the old one is. Running jobs go on, accepted ones stay queued. A new version of
    Ray, of the registry or of the blob server needs `mhs down` and `mhs up`: what ran then is run again.
    """
    from mhs_ray import __version__
    from mhs_ray.platform import up as platform

    platform.upgrade(load_settings(), output.note)
    output.emit({"upgraded": True, "version": __version__}, lambda _: output.line(f"this is version {__version__} now"))


def status() -> None:
    """Say whether the platform runs and whether each part of it can work.

    Exit code 1 when a part cannot, 3 when the platform is down.
    """
    named, settings = client_environment(), load_settings()
    where: dict[str, Any] = {"url": named.url} if named.url else {"home": str(settings.home)}
    if not named.url and not is_running(settings):
        if output.is_json():
            output.line(_dump({"running": False, "ready": False, **where}))
            raise CommandFailed(UNREACHABLE)
        raise NotRunningError(str(settings.home))
    try:
        with connect() if named.url else connect_home(settings) as client:
            health = client.health()
    except UnreachableError:
        if not output.is_json():
            raise
        output.line(_dump({"running": False, "ready": False, **where}))
        raise CommandFailed(UNREACHABLE) from None
    addresses = {} if named.url else _addresses(Endpoints.load(settings.home))
    document = {"running": True, **health, **where, **addresses}

    def show(_: Any) -> None:
        output.facts({"ready": health["ready"], **where, **addresses})
        for part, state in health.get("parts", {}).items():
            output.facts({part: state})

    output.emit(document, show)
    if not health["ready"]:
        raise CommandFailed(FAILED)


def _dump(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document)


def doctor(
    settings: Annotated[bool, typer.Option("--settings", help="List every setting with its value here.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at a cluster: its FILE, or on the head what it depends on.")
    ] = False,
    file: Annotated[Path | None, typer.Argument(help="With --cluster: a file for `ray up`; nobody is asked.")] = None,
) -> None:
    """Say what this machine lacks and how to get it, one line each. Exit code 1 when something needed is missing.

    `mhs doctor --cluster cluster/aws.yaml` finds what is wrong with a cluster file. `mhs doctor --cluster`, on the
    head, tries keys, database, blobs and registry, and tells which nodes the cloud refused and why.
    """
    from mhs_ray.cli import doctor as d

    if settings:
        rows = d.setting_rows(load_settings())
        output.emit(rows, lambda _: output.table(rows, ("variable", "value", "from"), ""))
        return
    if file is not None and not cluster:
        raise InvalidInputError.at("FILE", "goes with --cluster: mhs doctor --cluster FILE")
    if cluster:
        from mhs_ray.cli import doctor_cluster as dc

        checks = dc.examine_file(file) if file is not None else dc.examine_cluster(load_settings())
    else:
        checks = d.examine(load_settings())
    ready = all(c.state not in {"missing", "wrong"} for c in checks)
    document = {"ready": ready, "checks": [c.to_json() for c in checks]}

    def show(_: Any) -> None:
        for check in checks:
            output.rich(check.text())
        wrong = "mend what is wrong" if cluster else "install what is missing"
        output.note("everything needed is here" if ready else f"{wrong}, then ask again")

    output.emit(document, show)
    if not ready:
        raise CommandFailed(FAILED)
