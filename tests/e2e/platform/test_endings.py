"""Every way a container can end is told apart, and said with its cause and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform.harness import Platform


def run(platform: Platform, zoo: int, scan: int, behaviour: str, **more: Any) -> int:
    env = [{"name": "BEHAVIOUR", "value": behaviour}]
    [job] = platform.submit(platform.algorithm(zoo, f"Does {behaviour}", env=env, **more), scan)
    return job


def test_exit_0_without_results_is_a_failure_of_its_own(platform: Platform, zoo: int, scan: int) -> None:
    job = run(platform, zoo, scan, "silent")
    card = platform.failure(job)
    assert (card["failure_class"], card["code"], card["exit_code"], card["attempt"]) == ("model", "no-results", 0, 1)
    assert "posted no results" in card["cause"]
    assert "/api/v3/external/results/" in card["mend"]
    assert card["excerpt"] == "nothing to say"
    assert platform.api.get(f"/v1/jobs/{job}/results").status_code == 404
    platform.nothing_left(job)


def test_invalid_results_name_their_faults_on_the_card_and_in_the_answer(
    platform: Platform, zoo: int, scan: int
) -> None:
    job = run(platform, zoo, scan, "invalid")
    card = platform.failure(job)
    assert (card["failure_class"], card["code"], card["attempt"]) == ("model", "invalid-results", 1)
    assert re.search(r"\$\.scanResults\[0\]\.\S+", card["cause"])
    assert "1 more" in card["cause"]
    [posted] = [line for line in platform.lines(job) if line.startswith("posted: 422")]
    assert "$.scanResults[0].results.summary" in posted
    assert "$.scanResults[0].geojson.features[0].properties.annotation_type" in posted
    assert platform.api.get(f"/v1/jobs/{job}/results").status_code == 404


def test_a_crash_shows_its_traceback(platform: Platform, zoo: int, scan: int) -> None:
    card = platform.failure(run(platform, zoo, scan, "crash"))
    assert (card["failure_class"], card["code"], card["exit_code"], card["attempt"]) == ("model", "exit-code", 1, 1)
    assert card["excerpt"].startswith("Traceback (most recent call last)")
    assert card["excerpt"].endswith("ValueError: cannot count cells of a slide")


def test_an_exit_code_that_asks_for_it_is_tried_again(platform: Platform, zoo: int, scan: int) -> None:
    job = run(platform, zoo, scan, "exit-75", retry_exit_codes=[75], max_model_retries=1)
    card = platform.failure(job)
    assert (card["code"], card["exit_code"], card["attempt"]) == ("exit-code", 75, 2)
    assert "[mhs] container exited with code 75" in platform.lines(job, attempt=1)
    platform.nothing_left(job, attempts=2)


@pytest.mark.both_engines
def test_a_time_limit_is_said_and_stops_the_container(platform: Platform, zoo: int, scan: int) -> None:
    job = run(platform, zoo, scan, "hang", time_limit_s=3)
    card = platform.failure(job)
    assert (card["state"], card["failure_class"], card["code"]) == ("timed out", "model", "time-limit")
    assert "3 seconds" in card["cause"]
    assert card["attempt"] == 1
    ended = platform.job(job)
    assert ended["started_at"] < ended["ended_at"]
    platform.nothing_left(job)


def test_out_of_memory_is_told_from_a_crash(platform: Platform, zoo: int, scan: int) -> None:
    # The smallest instance type has as much memory as half this machine: the limit is lowered while the container
    # waits, in its own control group, and then the kernel does what it does at any limit.
    job = run(platform, zoo, scan, "eat")
    platform.wait_line(job, "waiting")
    pid = platform.inside(job, "/").parts[2]
    lower_memory_limit(int(pid), 256 << 20)
    platform.go(job)
    card = platform.failure(job)
    assert (card["failure_class"], card["code"], card["attempt"]) == ("model", "out-of-memory", 1)
    assert "g4dn.xlarge" in card["cause"]
    assert "GB" in card["mend"]


def lower_memory_limit(pid: int, size: int) -> None:
    """Give the control group of a process this much memory, on cgroup v1 or v2."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        group = Path("/sys/fs/cgroup", controllers, path[1:])
        if "memory" in controllers.split(","):
            for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
                if (group / name).exists():
                    (group / name).write_text(str(size))
            return
        if not controllers and (group / "memory.max").exists():
            (group / "memory.max").write_text(str(size))
            return
    pytest.skip("this machine's control groups limit no memory")
