"""``mhs cohort``: one container on thousands of slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import JOB_FAILED, CommandFailed, command
from mhs_ray.cli.connect import connect
from mhs_ray.cli.images import Limit
from mhs_ray.client.cohorts import Cohort, Cohorts
from mhs_ray.cohorts.dataset import Dataset
from mhs_ray.cohorts.follow import duration, money, progress_line, watch
from mhs_ray.cohorts.follow import submit as send
from mhs_ray.cohorts.manifest import read_manifest

app = typer.Typer(no_args_is_help=True, help="Cohorts: one container on thousands of slides, as one thing.")

CohortId = Annotated[int, typer.Argument(metavar="COHORT", help="id of the cohort", min=1)]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="folder for the results, written as slides end")]
SlidesAt = Annotated[
    Path | None, typer.Option(help="folder in which QuPath's machine has the slides; where they were when left out")
]


@command(app)
def submit(
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet with a column `slide`, and `id` and others")],
    container: Annotated[str, typer.Option(help="id or name of the runnable container")],
    key: Annotated[str | None, typer.Option(help="the same key again goes on; the file's name when left out")] = None,
    name: Annotated[str | None, typer.Option(help="what people see; the key when left out")] = None,
    canary: Annotated[int, typer.Option(help="slides that must succeed before the rest starts", min=0)] = 3,
    run_known: Annotated[bool, typer.Option("--run-known", help="run also what was run before")] = False,
    mixed_formats: Annotated[bool, typer.Option("--mixed-formats", help="take slides of several formats")] = False,
    leave_out_bad: Annotated[bool, typer.Option("--leave-out-bad", help="run the others if some are bad")] = False,
    check: Annotated[bool, typer.Option("--check", help="look at every slide and start nothing")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="stay until it ended")] = False,
    out: Out = None,
    slides_at: SlidesAt = None,
) -> None:  # fmt: skip
    """Run a container on every slide of a manifest, after clinical work; a canary first.

    All faults of the manifest are told at once, and nothing runs then. Cut off, the same command goes on; nothing is
    run twice. With --follow or --out the exit code is 4 when slides failed or the cohort was stopped.

    Example: mhs cohort submit slides.csv --container 'My GPU Container' --canary 5 --out results/
    """
    read = read_manifest(manifest)
    with connect() as mhs:
        cohorts = Cohorts(mhs)
        cohort = send(
            cohorts, read, key=key or manifest.stem, container=container, name=name, canary=canary,
            skip_known=not run_known, mixed_formats=mixed_formats, leave_out_bad=leave_out_bad, check_only=check,
            say=output.note,
        )  # fmt: skip
        if check:
            output.emit(cohort, lambda c: output.line(f"{c['received']} slides can be run"))
        elif follow or out is not None:
            _see_through(cohorts, cohort["id"], out, slides_at)
        else:
            output.emit(cohort, _show)
            output.note(f"see it run: mhs cohort status {cohort['id']} -f")


def _see_through(cohorts: Cohorts, cohort_id: int, out: Path | None, slides_at: Path | None) -> None:
    dataset = Dataset(cohorts, cohort_id, out) if out is not None else None
    ended = watch(
        cohorts, cohort_id, dataset=dataset, on_change=lambda c: output.note(progress_line(c)), slides_at=slides_at
    )
    output.emit(ended, _show)
    if dataset is not None:
        output.note(f"{dataset.written} slides' results are in {out}")
    if ended["state"] != "done" or ended["counts"]["failed"]:
        raise CommandFailed(JOB_FAILED)


def _show(c: Cohort) -> None:
    f = c["forecast"]
    cost = None
    if f["spent"] is not None:
        cost = f"{money(f['spent'], f['currency'])} spent"
        if f["left"]:
            cost += f", about {money(f['left'], f['currency'])} to come"
        cost += f" ({f['price_per_hour']:g} {f['currency']} an hour of {c['instance_type']})"
    output.facts({
        "id": c["id"], "name": c["name"], "key": c["key"], "state": c["state"], "reason": c["reason"],
        "container": c["container_name"], "image": c["image_digest"], "canary": c["canary"],
        "slides": ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in c["counts"].items() if n),
        "left": duration(f["eta_s"]) if f["eta_s"] and c["state"] in ("canary", "running") else None,
        "GPU": duration(f["gpu_s"]), "cost": cost, "created by": c["created_by"],
        "created at": output.local_time(c["created_at"]), "ended at": output.local_time(c["ended_at"]),
    })  # fmt: skip


@command(app, "list")
def list_(limit: Limit = 50) -> None:
    """List cohorts, newest first."""
    with connect() as mhs:
        found = list(Cohorts(mhs).list(limit))
    columns = ("id", "name", "state", "container_name", "rows", "succeeded", "failed", "left", "created_at")
    output.emit(found, lambda f: output.table(map(_row, f), columns, "no cohorts; make one: mhs cohort submit"))


def _row(c: Cohort) -> dict[str, Any]:
    counts = c["counts"]
    return {
        **c, "succeeded": counts["succeeded"] + counts["duplicate"], "failed": counts["failed"],
        "left": counts["pending"] + counts["under_way"], "created_at": output.local_time(c["created_at"]),
    }  # fmt: skip


@command(app)
def status(
    cohort: CohortId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="stay until it ended")] = False,
    failures: Annotated[bool, typer.Option("--failures", help="list the slides that failed")] = False,
) -> None:
    """Show a cohort: progress, time left, cost so far and to come."""
    with connect() as mhs:
        cohorts = Cohorts(mhs)
        if follow:
            _see_through(cohorts, cohort, None, None)
        elif failures:
            found = list(cohorts.slides(cohort, states=("failed", "left out")))
            columns = ("row", "id", "state", "job_id", "failure_code", "cause")
            output.emit(found, lambda f: output.table(f, columns, "no slide failed"))
        else:
            output.emit(cohorts.get(cohort), _show)


@command(app)
def cancel(cohort: CohortId) -> None:
    """Start nothing more of it and stop what runs; results that are there stay."""
    with connect() as mhs:
        output.emit(Cohorts(mhs).cancel(cohort), _show)


@command(app)
def resume(cohort: CohortId) -> None:
    """Go on with what a stopped or cancelled cohort has left; a canary that failed is tried once more."""
    with connect() as mhs:
        output.emit(Cohorts(mhs).resume(cohort), _show)


@command(app)
def rerun(cohort: CohortId) -> None:
    """Run the slides that failed once more, with the same image and variables."""
    with connect() as mhs:
        output.emit(Cohorts(mhs).rerun(cohort), _show)


@command(app)
def results(
    cohort: CohortId,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder; one that was begun is gone on with")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="stay until it ended")] = False,
    slides_at: SlidesAt = None,
) -> None:
    """Write what there is: a partitioned Parquet dataset, GeoJSON per slide, and a QuPath project.

    Example: mhs cohort results 7 -o results/ --slides-at /mnt/slides
    """
    with connect() as mhs:
        cohorts = Cohorts(mhs)
        if follow:
            _see_through(cohorts, cohort, out, slides_at)
            return
        now = cohorts.get(cohort)
        dataset = Dataset(cohorts, cohort, out)
        dataset.pull()
        dataset.finish(now, slides_at)
        document = {"path": str(out), "slides": dataset.written, "cohort": cohort, "state": now["state"]}
        output.emit(document, lambda d: output.line(f"{d['path']}  ({d['slides']} slides)"))


@command(app)
def prices() -> None:
    """Show the prices that costs are reckoned with; the operator sets MHS_COHORTS__PRICES."""
    with connect() as mhs:
        found = Cohorts(mhs).prices()
    rows = [{"instance_type": k, f"{found['currency']}_per_hour": v} for k, v in found["per_hour"].items()]
    output.emit(found, lambda _: output.table(rows, list(rows[0]) if rows else [], "no prices are set"))
