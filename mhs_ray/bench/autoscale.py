"""``mhs bench autoscale``: real jobs for two instance types on a cluster without nodes, until it is so again.

Ray's autoscaler starts a raylet per node on this machine, so the times are its own and the platform's: a cloud adds the
boot of a machine. The peer of each type's `up_s` is `bare_up_s`: the time until Ray itself said that a node lives.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._cloud_stage import ENDED, CloudStage, cloud_stage
from mhs_ray.client.wire import Job
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.local_cloud import NodeType

TYPES: Final = (NodeType("g4dn.xlarge", 2, idle_s=5), NodeType("g5.2xlarge", 1, idle_s=5))
JOBS: Final = {"g4dn.xlarge": 4, "g5.2xlarge": 2}
_WORK_S: Final = 2.0
_WITHIN_S: Final = 300.0


def run(_settings: Settings, say: Say) -> dict[str, Any]:
    """Return `node_types` (seconds from the submission, and from the last end to no node) and `jobs`."""
    with cloud_stage(TYPES, say) as s:
        return measure(s, JOBS, _WORK_S, say)


def measure(s: CloudStage, wanted: dict[str, int], work_s: float, say: Say) -> dict[str, Any]:
    """Submit the jobs, watch nodes come and go, and tell."""
    began = time.time()
    jobs = {s.submit(kind, work_s): kind for kind, count in wanted.items() for _ in range(count)}
    say(f"{len(jobs)} jobs wait for nodes")
    most, first = dict.fromkeys(wanted, 0), dict[str, float]()
    zero, states = dict[str, float](), dict[int, Job]()
    deadline = began + _WITHIN_S
    while len(zero) < len(wanted) and time.time() < deadline:
        counts = s.counts()
        for kind in wanted:
            if counts[kind]:
                first.setdefault(kind, time.time())
                if counts[kind] > most[kind]:
                    most[kind] = counts[kind]
                    say(f"{counts[kind]} nodes of {kind}")
        for job_id in jobs.keys() - states.keys():
            job = s.client.job(job_id)
            if job["state"] in ENDED:
                states[job_id] = job
        for kind in wanted.keys() - zero.keys():
            if counts[kind] == 0 and all(j in states for j, of in jobs.items() if of == kind):
                zero[kind] = time.time()
                say(f"no node of {kind} any more")
        time.sleep(0.25)
    node_types = {}
    for kind in wanted:
        mine = [job_id for job_id, of in jobs.items() if of == kind]
        placed = [_at(s, j, "placed") for j in mine]
        ends = [datetime.fromisoformat(end).timestamp() for j in mine if j in states and (end := states[j]["ended_at"])]
        node_types[kind] = {
            "scaled_up": most[kind],
            "back_to_zero": kind in zero,
            "up_s": round(min(p for p in placed if p) - began, 1) if any(placed) else None,
            "bare_up_s": round(first[kind] - began, 1) if kind in first else None,
            "down_s": round(zero[kind] - max(ends), 1) if kind in zero and ends else None,
        }
    return {
        "benchmark": "autoscale",
        "engine": s.engine.name,
        "node_types": node_types,
        "jobs": {
            "submitted": len(jobs),
            "succeeded": sum(job["state"] == "succeeded" for job in states.values()),
            "attempts": sum(job["attempt"] for job in states.values()),
        },
    }


def _at(s: CloudStage, job_id: int, event: str) -> float | None:
    for entry in s.client.job_events(job_id):
        if entry["event"] == event:
            return datetime.fromisoformat(entry["at"]).timestamp()
    return None


BENCHMARK: Final = Benchmark(
    "autoscale", "nodes of two types from none to as many as jobs want and back, beside the raw start of a node", run
)
