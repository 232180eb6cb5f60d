"""``mhs local-env``: what a plain ``docker run`` of a container needs to post to this platform."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from mhs_ray.cli import output, trial
from mhs_ray.cli.connect import connect
from mhs_ray.cli.signals import ended_by_signals
from mhs_ray.client import Client
from mhs_ray.client.errors import ApiError
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.settings import client_environment, load_settings
from mhs_ray.platform.endpoints import Endpoints


def local_env(
    task: Annotated[str, typer.Argument(metavar="TASK", help="an AI request of yours: its results go there")],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="named in the command")] = "my-docker-image:latest",
    scan: Annotated[str | None, typer.Option(metavar="FILE", help="the slide here; else the uploaded one")] = None,
    scan_id: Annotated[str | None, typer.Option(help="which scan of the task, where it has several")] = None,
    gpus: Annotated[bool, typer.Option("--gpus/--no-gpus", help="put --gpus all into the command")] = False,
    engine: Annotated[str, typer.Option(help="docker or podman, as the command is to begin")] = "docker",
) -> None:
    """Print the `docker run` with API_KEY_ID and API_KEY_SECRET that posts to this platform, and serve what it needs.

    No sandbox and no limits: for a debugger, a profiler, a GPU tool. `mhs test` is the way to try a container. Until
    it is ended, a server on loopback answers for `https://api.{HOST}` with a certificate that the command mounts, and
    for the slide. A task whose job has its results already keeps those: use one that failed or was cancelled. Linux.

    Example: mhs local-env 1000000007 my-docker-image:latest --scan slide.svs
    """
    from mhs_ray.local.plain import PlainHosts, PlainTask, shell

    settings = load_settings()
    with connect() as mhs:
        number, slide, task_number = _slide(mhs, task, scan_id, scan)
    gateway = client_environment().url or Endpoints.load(settings.home).api_url
    plain = PlainTask(task_number, number, slide)
    keys = settings.home / "keys"
    id_from, secret_from = ("$MHS_CLIENT_ID", "$MHS_CLIENT_SECRET") if client_environment().url else (
        f'"$(cat {keys / "client-id"})"', f'"$(cat {keys / "client-secret"})"',
    )  # fmt: skip
    with ended_by_signals(), PlainHosts(settings.home / "local", settings.host.split(":")[0], gateway, plain) as hosts:
        words = hosts.command(engine, image, gpus)
        document: dict[str, Any] = {
            "export": f"export API_KEY_ID={id_from} API_KEY_SECRET={secret_from}", "command": words,
            "host": hosts.host, "env_file": str(hosts.env_file), "task_id": task_number, "scan_id": number,
        }  # fmt: skip

        def show(_: Any) -> None:
            output.line(document["export"])
            output.line(shell(words))
            output.note("in another terminal; Ctrl-C here when you are done")

        output.emit(document, show)
        signal.pause()


def _slide(mhs: Client, task: str, scan_id: str | None, given: str | None) -> tuple[str, Path | str, str]:
    found = mhs.task(task)
    jobs = {job["scan_id"]: job for job in found["jobs"]}
    if scan_id is None and len(jobs) > 1:
        raise InvalidInputError.at("--scan-id", f"the task has the scans {', '.join(jobs)}; name one")
    number = scan_id or next(iter(jobs))
    if number not in jobs:
        raise InvalidInputError.at("--scan-id", f"the task has the scans {', '.join(jobs)}, not {number}")
    if given is not None:
        return number, Path(trial.existing(given)).resolve(), found["task_id"]
    try:
        return number, mhs.scan_url(jobs[number]["scan_row_id"], 24 * 3600)["url"], found["task_id"]
    except ApiError as error:
        if error.status != 409:
            raise
        raise InvalidInputError.at(
            "--scan", "the platform does not keep the bytes of this scan: name its file"
        ) from None
