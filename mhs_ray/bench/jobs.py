"""``mhs bench jobs``: from submission to a running container, beside the same image run by the bare engine.

Both are measured to the moment that the container's process runs, in turns, so that the machine's noise meets both.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import Any, Final

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._stage import LOCAL_IMAGE, Stage, stage
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.up import platform_pids

RUNS: Final = 25
_WARM_UP: Final = 3
_SETTLE_S: Final = 1.5  # an idle platform: the worker for the next job is ready, and nobody else's work is measured


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Return medians in seconds: `job_s`, `bare_s`, `overhead_s`, `ratio_to_bare`, and `parts` of a job."""
    with stage(settings, say) as s:
        bare = bare_command(s, LOCAL_IMAGE)
        for _ in range(_WARM_UP):
            timed_job(s)
            timed_run(bare)
        jobs: list[dict[str, float]] = []
        bares: list[float] = []
        for i in range(RUNS):
            time.sleep(_SETTLE_S)
            jobs.append(timed_job(s))
            time.sleep(_SETTLE_S)
            bares.append(timed_run(bare))
            if (i + 1) % 5 == 0:
                say(f"{i + 1} of {RUNS}")
        memory = _memory(s)
        idle = _idle_cpu(s)
    ours, theirs = median(j["total_s"] for j in jobs), median(bares)
    return {
        "benchmark": "jobs",
        "engine": s.engine.name,
        "runs": RUNS,
        "job_s": round(ours, 3),
        "bare_s": round(theirs, 3),
        "overhead_s": round(ours - theirs, 3),
        "ratio_to_bare": round(ours / theirs, 2),
        "parts": {name: round(median(j[name] for j in jobs), 3) for name in jobs[0] if name != "total_s"},
        "idle_memory_bytes": memory,
        "idle_cpu_share_of_a_core": idle,
        "raw": {"job_s": [round(j["total_s"], 3) for j in jobs], "bare_s": [round(b, 3) for b in bares]},
    }


def timed_job(s: Stage) -> dict[str, float]:
    """Submit one and return how long each part took until its container ran; waits for its end."""
    began = time.time()
    job_id = s.client.submit(algorithm_id=s.algorithm_id, scan_ids=[s.scan_id])["job_ids"][0]
    answered = time.time()
    job = s.client.wait(job_id)
    at = {e["event"]: datetime.fromisoformat(e["at"]).timestamp() for e in s.client.job_events(job_id)}
    timings = job["resources"]["timings"]
    return {
        "total_s": at["started"] - began,
        "submit_s": answered - began,
        "dispatch_s": at["dispatched"] - at["submitted"],
        "worker_s": at["placed"] - at["dispatched"],
        "prepare_and_start_s": at["started"] - at["placed"],
        "of_it_slide_s": timings["slide_s"],
        "of_it_image_s": timings["image_s"],
        "of_it_sandbox_s": timings["sandbox_s"],
        "of_it_start_s": timings["start_s"],
    }


def timed_run(command: Sequence[str]) -> float:
    """Run the image by the engine's own command; return the time until its first byte of output."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        took = time.monotonic() - began
        process.stdout.read()
    if not first or process.returncode:
        raise RuntimeError(f"{command[0]} run failed with exit code {process.returncode}")
    return took


def bare_command(s: Stage, image: str) -> list[str]:
    """Return `podman run` or `docker run` with nothing that the machine does not insist on."""
    caps = s.engine.capabilities()  # type: ignore[attr-defined]
    if s.engine.name == "docker":
        host = ["--host", s.settings.docker_host] if s.settings.docker_host else []
        return ["docker", *host, "run", "--rm", "--network", "none", image]
    limits = []
    if caps.open_files is not None:
        limits += ["--ulimit", f"nofile={caps.open_files}:{caps.open_files}"]
    if caps.processes is not None:
        limits += ["--ulimit", f"nproc={caps.processes}:{caps.processes}"]
    runtime = ["--runtime", caps.runtime] if caps.runtime else []
    return ["podman", *runtime, "run", "--rm", "--network", "none", *limits, image]


def _memory(s: Stage) -> int:
    """Return the proportional set size of all processes of the platform, bytes."""
    total = 0
    for pid in platform_pids(s.settings):
        try:
            with open(f"/proc/{pid}/smaps_rollup") as rollup:  # noqa: PTH123
                total += sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def _idle_cpu(s: Stage, seconds: float = 20.0) -> dict[str, float]:
    """Return CPU seconds per second of the idle platform: all of it, and what is ours (not Ray's own processes)."""
    time.sleep(5)

    def used() -> dict[int, tuple[bool, float]]:
        return {pid: (_is_ours(pid), _cpu_s(pid)) for pid in platform_pids(s.settings)}

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    after, took = used(), time.monotonic() - began
    spent = [(ours, cpu - before[pid][1]) for pid, (ours, cpu) in after.items() if pid in before]
    return {
        "all": round(sum(cpu for _, cpu in spent) / took, 4),
        "ours": round(sum(cpu for ours, cpu in spent if ours) / took, 4),
    }


def _is_ours(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline") as file:  # noqa: PTH123
            command = file.read()
    except OSError:
        return False
    return any(
        word in command for word in ("mhs_ray.", "ray::DispatcherShell", "ray::RegistrarShell", "docker-registry")
    )


def _cpu_s(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


BENCHMARK: Final = Benchmark(
    "jobs", "submission to running container, beside the bare engine's run of the same image", run
)
