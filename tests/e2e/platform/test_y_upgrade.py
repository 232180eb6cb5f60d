"""A new version takes over while 50 jobs run. Late, since the platform has the new version from here on."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import Counter

import httpx

from tests.e2e.platform.harness import PROJECT, Platform

JOBS = 50
VERSION = "0.1.1"


def _release(platform: Platform) -> None:
    """Lay out a version of the code that differs: in its number, and in what its dispatcher calls jobs."""
    for name in ("mhs_ray", "api"):
        shutil.copytree(PROJECT / name, platform.release / name, ignore=shutil.ignore_patterns("__pycache__"))
    changes = {
        "mhs_ray/__init__.py": (r'__version__ = "[^"]+"', f'__version__ = "{VERSION}"'),
        "mhs_ray/dispatch/orders.py": (r'return f"job \{job\.id\} · ', 'return f"job {job.id} · new · '),
    }
    for file, (old, new) in changes.items():
        path = platform.release / file
        text, count = re.subn(old, new, path.read_text())
        assert count == 1, file
        path.write_text(text)


class _Caller(threading.Thread):
    """Somebody who uses the API all the while, and submits jobs as Techcyte would: again until it is taken."""

    def __init__(self, platform: Platform, algorithm: str, scan: int) -> None:
        super().__init__(daemon=True)
        self.platform, self.algorithm, self.scan = platform, algorithm, scan
        self.answers: Counter[str] = Counter()
        self.jobs: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        number = 0
        with httpx.Client(base_url=self.platform.api.base_url, auth=self.platform.api.auth, timeout=30) as http:
            while not self.over.wait(0.1):
                body = {"algorithm": self.algorithm, "scan_ids": [self.scan], "task_id": str(990_000 + number)}
                try:
                    answer = http.post("/v1/tasks", json=body)
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__] += 1
                    continue
                self.answers[str(answer.status_code)] += 1
                if answer.status_code in {200, 201}:
                    self.jobs += answer.json()["job_ids"]
                    number += 1
                    if number == 5:
                        return


def test_a_new_version_takes_over_while_jobs_run_and_each_ends_once(platform: Platform, zoo: int, scan: int) -> None:
    algorithm = platform.algorithm(zoo, "Posts", env=[{"name": "BEHAVIOUR", "value": "post"}])
    gated = platform.algorithm(zoo, "Gated", env=[{"name": "BEHAVIOUR", "value": "gated"}])
    [through] = platform.submit(gated, scan)  # runs from before to after
    platform.wait_line(through, "waiting")
    jobs = [platform.submit(algorithm, scan)[0] for _ in range(JOBS - 1)]
    platform.succeeded(jobs[2])
    old = platform.actor("mhs dispatcher")
    assert platform.get("/openapi.json")["info"]["version"] != VERSION
    _release(platform)
    caller = _Caller(platform, algorithm, scan)
    caller.start()
    began = time.monotonic()
    platform.upgrade()
    took = time.monotonic() - began
    caller.join(60)
    assert len(caller.jobs) == 5, caller.answers
    assert platform.get("/openapi.json")["info"]["version"] == VERSION
    assert platform.actor("mhs dispatcher")["pid"] != old["pid"]
    platform.go(through)
    for job in (through, *jobs, *caller.jobs):
        found = platform.succeeded(job, within_s=120)
        assert found["attempt"] == 1, found
        assert platform.events(job).count("succeeded") == 1
    assert platform.report(through) == {"summary": "after the wait"}
    assert {platform.report(job)["summary"] for job in jobs} == {"fine"}
    by_new = [job for job in jobs if f"job {job} · new · " in platform.log(job)]
    print(f"upgraded in {took:.1f} s; {len(by_new)} of {len(jobs)} jobs by the new version; answers {caller.answers}")
    assert by_new, "some were started by the new version"
    assert len(by_new) < len(jobs), "and some by the old one"
    [kept] = [job for job in (through,) if "· new ·" not in platform.log(job)]
    assert kept == through
