"""``mhs submit``, ``jobs``, ``job``, ``tasks``, ``logs``, ``results``."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mhs_ray.cli import compare, output, replay, story
from mhs_ray.cli.command import JOB_FAILED, CommandFailed, command
from mhs_ray.cli.connect import connect
from mhs_ray.cli.images import Limit
from mhs_ray.client import Client
from mhs_ray.client import wire as w
from mhs_ray.client.client import is_final
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.models import Priority
from mhs_ray.domain.states import JobState

job_app = typer.Typer(no_args_is_help=True, help="One job: its card, its story, cancel, run again.")

JobId = Annotated[int, typer.Argument(metavar="JOB", help="id of the job", min=1)]
ScanRows = Annotated[list[int], typer.Option("--scan", "-s", help="id of a scan; can be repeated")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    panel = {"rich_help_panel": "Running models"}
    for function in (submit, jobs, tasks, logs, results, compare.compare, replay.replay):
        command(app, **panel)(function)
    app.add_typer(job_app, name="job", rich_help_panel=panel["rich_help_panel"])


def submit(
    algorithm: Annotated[str, typer.Argument(help="name or id of the case algorithm")],
    scan: ScanRows,
    wait: Annotated[bool, typer.Option("--wait", help="until every job ended")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="wait, and show log lines as they come")] = False,
    description: str | None = None,
    priority: Priority = Priority.CLINICAL,
    task_id: Annotated[str | None, typer.Option(help="the same one again adds nothing")] = None,
    case_id: str | None = None,
) -> None:
    """Ask for an algorithm on one or more scans: one job per scan.

    Example: mhs submit 'Mitosis count' --scan 1 --scan 2 --follow

    With --wait or --follow the exit code is 4 when a job did not succeed.
    """
    with connect() as mhs:
        chosen: dict[str, Any] = {"algorithm_id": int(algorithm)} if algorithm.isdigit() else {"algorithm": algorithm}
        done = mhs.submit(
            scan_ids=scan, description=description, priority=priority.value, task_id=task_id, case_id=case_id, **chosen
        )
        if not (wait or follow):
            output.emit(done, _show_submitted)
            return
        output.note(f"task {done['task_id']}: job {', '.join(map(str, done['job_ids']))}")
        ended = [story.watch(mhs, job_id, log_lines=follow) for job_id in done["job_ids"]]
        output.emit({**done, "jobs": ended}, lambda _: _show_jobs(ended))
        if any(job["state"] != JobState.SUCCEEDED for job in ended):
            raise CommandFailed(JOB_FAILED)


def _show_jobs(ended: list[w.Job]) -> None:
    for job in ended:
        story.show_job(job)
        output.line("")


def _show_submitted(done: w.Submitted) -> None:
    numbers = " ".join(map(str, done["job_ids"]))
    again = "" if done["created"] else " (this task id had come before; nothing was added)"
    output.line(f"task {done['task_id']}: job {numbers}{again}")
    output.note(f"see it run: mhs logs {done['job_ids'][0]} -f")


def jobs(
    state: Annotated[list[JobState] | None, typer.Option(help="can be repeated")] = None,
    algorithm: str | None = None,
    container: int | None = None,
    scan: int | None = None,
    task: str | None = None,
    created_by: str | None = None,
    failure_class: Annotated[str | None, typer.Option(help="platform, model or input")] = None,
    created_after: Annotated[str | None, typer.Option(help="time with its zone, 2026-01-31T12:00:00Z")] = None,
    created_before: str | None = None,
    limit: Limit = 50,
) -> None:
    """List jobs, newest first.

    Example: mhs jobs --state failed --failure-class model --limit 10
    """
    with connect() as mhs:
        found = list(
            mhs.jobs(
                limit, state=[s.value for s in state] if state else None, algorithm=algorithm, container_id=container,
                scan_row_id=scan, task_id=task, created_by=created_by, failure_class=failure_class,
                created_after=created_after, created_before=created_before,
            )
        )  # fmt: skip
    columns = ("id", "state", "algorithm_name", "scan_id", "task_id", "created_at", "took_s", "cause")
    output.emit(found, lambda f: output.table(map(_row, f), columns, "no jobs; make one: mhs submit"))


def _row(job: w.Job) -> dict[str, Any]:
    took = output.seconds_between(job["started_at"], job["ended_at"])
    cause = job["failure"]["cause"] if job["failure"] else ""
    return {**job, "created_at": output.local_time(job["created_at"]), "took_s": took, "cause": cause[:100]}


def tasks(limit: Limit = 50, algorithm: int | None = None, origin: str | None = None) -> None:
    """List AI requests, newest first."""
    with connect() as mhs:
        found = list(mhs.tasks(limit, algorithm_id=algorithm, origin=origin))
    rows = ({**t, "created_at": output.local_time(t["created_at"])} for t in found)
    columns = ("task_id", "algorithm_name", "origin", "priority", "created_by", "created_at", "description")
    output.emit(found, lambda _: output.table(rows, columns, "no tasks; make one: mhs submit"))


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="stay until the job ends")] = False,
    attempt: Annotated[int | None, typer.Option(help="the newest when left out", min=1)] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="with the time of each line")] = False,
) -> None:
    """Print a job's log; with -f as it grows, through lost connections too.

    With --json: one document with all lines; with -f --json one object per line as it comes. With -f the exit code
    is 4 when the job did not succeed.
    """
    with connect() as mhs:
        if not follow:
            lines = mhs.log(job, attempt)
            document = {"job": job, "lines": [asdict(line) for line in lines]}
            output.emit(document, lambda _: story.print_lines(lines, timestamps))
            return
        story.print_lines(mhs.follow_log(job, attempt), timestamps)
        ended = mhs.job(job)
        if is_final(ended):
            output.note(f"job {job}: {ended['state']}")
            if ended["state"] != JobState.SUCCEEDED:
                raise CommandFailed(JOB_FAILED)


def results(
    job: Annotated[int | None, typer.Argument(metavar="[JOB]", help="id of the job")] = None,
    task: Annotated[str | None, typer.Option(help="all scans of this task instead")] = None,
    kind: Annotated[str | None, typer.Option("--format", help="json, geojson or parquet")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="file to write; stdout when left out")] = None,
) -> None:
    """Show a job's results, or write them to a file.

    Examples: mhs results 12 · mhs results 12 --format geojson -o cells.geojson · mhs results --task 185714 -o t.parquet
    """
    if (job is None) == (task is None):
        raise InvalidInputError.at("JOB", "give a job or --task")
    if kind not in {None, "json", "geojson", "parquet"}:
        raise InvalidInputError.at("--format", f"{kind!r} is none of json, geojson, parquet")
    with connect() as mhs:
        if out is not None:
            _save(mhs, out, kind or out.suffix.removeprefix(".") or "json", job, task)
        elif kind is None or (kind == "json" and output.is_json()):
            found = mhs.job_results(job) if job is not None else mhs.task_results(str(task))
            output.emit(found, story.show_results)
        elif kind == "parquet" and sys.stdout.isatty():
            raise InvalidInputError.at("-o", "Parquet is binary; name a file with -o")
        else:
            mhs.save_results(kind, sys.stdout.buffer, job_id=job, task_id=task)
            sys.stdout.buffer.flush()


def _save(mhs: Client, out: Path, kind: str, job: int | None, task: str | None) -> None:
    kind = {"parq": "parquet", "geo": "geojson"}.get(kind, kind)
    if kind not in {"json", "geojson", "parquet"}:
        raise InvalidInputError.at("--format", f"cannot be told from {out.name}; give json, geojson or parquet")
    partial = out.with_name(f".{out.name}.part")
    try:
        try:
            with partial.open("wb") as target:
                size = mhs.save_results(kind, target, job_id=job, task_id=task)
            partial.replace(out)
        except OSError as error:
            raise InvalidInputError.at("-o", f"cannot write {out}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    document = {"path": str(out), "bytes": size, "format": kind}
    output.emit(document, lambda d: output.line(f"{d['path']}  ({output.size(size)})"))


@command(job_app)
def show(job: JobId) -> None:
    """Show a job; on failure the cause, the last lines and one thing to do."""
    with connect() as mhs:
        output.emit(mhs.job(job), story.show_job)


@command(job_app)
def events(job: JobId) -> None:
    """Tell a job's story: every change of state with its time."""
    with connect() as mhs:
        output.emit(mhs.job_events(job), story.show_story)


@command(job_app)
def cancel(job: JobId) -> None:
    """Cancel a job; a running container is stopped."""
    with connect() as mhs:
        output.emit(mhs.cancel(job), story.show_job)


@command(job_app)
def rerun(job: JobId) -> None:
    """Run an ended job again, as a new job with the same image and variables."""
    with connect() as mhs:
        output.emit(mhs.rerun(job), story.show_job)
