"""A job as people read it: its card, its story, its log, its results, and watching it run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Final

from rich.text import Text

from mhs_ray.cli import output
from mhs_ray.client import Client
from mhs_ray.client import wire as w
from mhs_ray.client.client import is_final

_WIDEST: Final = 240  # of a log line beside the progress; the log itself has all of it


def show_job(job: w.Job) -> None:
    """Show a job's card, with the failure card below it."""
    took = output.seconds_between(job["started_at"], job["ended_at"]) if job["ended_at"] else None
    peak = job["resources"].get("memory_peak_bytes")
    output.facts({
        "job": job["id"], "state": job["state"], "queue position": job.get("queue_position"),
        "waits because": job.get("waits_because"),
        "algorithm": job["algorithm_name"], "container": job["container_name"], "scan id": job["scan_id"],
        "task id": job["task_id"], "image": job["image_digest"], "instance type": job["instance_type"],
        "attempt": job["attempt"], "node": job["node"], "created": output.local_time(job["created_at"]),
        "took": f"{took:g} s" if took is not None else None, "peak memory": output.size(peak) if peak else None,
    })  # fmt: skip
    if job["failure"]:
        show_failure(job["failure"])


def show_failure(failure: w.Failure) -> None:
    """Show the failure card: the cause, the last lines, one thing to do."""
    output.rich(
        Text.assemble("\n", (f"{failure['failure_class']} failure ({failure['code']}): ", "bold red"), failure["cause"])
    )
    for text in failure["excerpt"].splitlines():
        output.rich(Text(f"  │ {text}", "dim"))
    output.rich(Text.assemble(("What to do: ", "bold"), failure["mend"]))


def show_story(events: Iterable[w.JobEvent]) -> None:
    """Show every change of state with the seconds since the one before."""
    before: str | None = None
    for event in events:
        gone = (output.seconds_between(before, event["at"]) or 0.0) if before else 0.0
        before = event["at"]
        at = datetime.fromisoformat(event["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
        cause = f"  {event['cause']}" if event["cause"] else ""
        style = output.STATE_STYLES.get(event["state"], "")
        attempt = f"attempt {event['attempt']}" if event["attempt"] else ""
        output.rich(
            Text.assemble(f"{at}  {f'+{gone:.1f} s':>9}  ", (f"{event['state']:<18}", style), f" {attempt:<9}{cause}")
        )


def print_lines(lines: Iterable[w.LogLine], timestamps: bool) -> None:
    """Print log lines as they come; with ``--json`` one object per line."""
    for line in lines:
        if output.is_json():
            output.line(json.dumps(asdict(line), ensure_ascii=False))
        else:
            output.line(as_text(line, timestamps))


def as_text(line: w.LogLine, timestamps: bool) -> str:
    """Return a log line as the API's plain text has it."""
    text = f"[mhs] {line.text}" if line.source == "platform" else line.text
    return f"{line.at} {text}" if timestamps else text


def watch(mhs: Client, job_id: int, *, log_lines: bool) -> w.Job:
    """Return the job once it ended; meanwhile tell its states, and with `log_lines` its log, on stderr."""
    seen: tuple[str, int] | None = None
    attempt, offset = 0, 0
    while True:
        job = mhs.job(job_id)
        if (job["state"], job["attempt"]) != seen:
            seen = (job["state"], job["attempt"])
            output.note(
                f"job {job_id}: {job['state']}" + (f" (attempt {job['attempt']})" if job["attempt"] > 1 else "")
            )
        if log_lines and job["attempt"]:
            if job["attempt"] != attempt:
                attempt, offset = job["attempt"], 0
            lines = mhs.log(job_id, attempt, offset)
            offset += len(lines)
            for line in lines:
                output.note(f"  │ {short(as_text(line, timestamps=False))}")
        # The job was read before its log: what it wrote up to its end is shown.
        if is_final(job):
            return job
        mhs.pause()


def short(text: str) -> str:
    """Return a log line that fits beside the progress; the log itself has all of it."""
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}… ({len(text)} characters)"


def show_results(results: w.Results) -> None:
    """Show what was found, a line per scan; the GeoJSON itself is for files."""
    if results["caseResults"]:
        output.facts({f"case {k}": v for k, v in results["caseResults"].items()})
    for scan in results["scanResults"]:
        output.rich(Text.assemble(("scan ", "bold"), scan["scanId"], f"  {scan['features']} features"))
        output.facts({f"  {k}": v for k, v in (scan["summary"] or {}).items()})
        output.facts({f"  {k}": v for k, v in (scan["results"] or {}).items()})
        if scan["qcFailReasons"] is not None:
            output.facts({"  QC": ", ".join(scan["qcFailReasons"]) or "pass"})
    output.note("write them to a file: mhs results … --format geojson -o FILE")
