"""A job's log is complete, in order, without secrets, live, resumable, and in Ray's dashboard too."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.platform.harness import Platform, eventually

PASSWORD = "hunter2-hunter2"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ")


@pytest.fixture(scope="module")
def chatty(platform: Platform, zoo: int) -> str:
    env = [{"name": "BEHAVIOUR", "value": "chatty"}, {"name": "API_PASSWORD", "value": PASSWORD, "secret": True}]
    return platform.algorithm(zoo, "Chatty", env=env)


def test_a_log_is_followed_while_it_runs_resumed_and_whole_afterwards(
    platform: Platform, chatty: str, scan: int
) -> None:
    [job] = platform.submit(chatty, scan)
    platform.wait(job, "running")
    seen = []
    for event in platform.follow(job):  # it still runs: the container waits for us
        seen.append(event)
        if event["text"].startswith("careless http"):
            break
    assert platform.job(job)["state"] == "running"
    assert [e["line"] for e in seen] == list(range(len(seen)))

    # Ray's dashboard shows the same lines under the attempt's actor.
    actor = eventually(lambda: platform.actor(f"job {job} · attempt 1 · "), "the attempt is an actor in the dashboard")
    name = f"job {job} · attempt 1 · scan {platform.job(job)['scan_id']} · Chatty"
    assert actor["name"] == name

    def in_dashboard() -> list[str]:
        answer = platform.ray("/api/v0/logs/file", actor_id=actor["actor_id"], suffix="out", lines=5000, format="text")
        # On a busy machine the dashboard may not have heard of the node's agent yet.
        return answer.text.splitlines() if answer.status_code == 200 else []

    shown = eventually(
        lambda: (found := in_dashboard()) and any("careless http" in t for t in found) and found, "lines"
    )
    first = next(i for i, text in enumerate(shown) if text.endswith("line 0"))
    assert [t for t in shown[first:] if re.fullmatch(r".*line \d+", t)] == [f"line {i}" for i in range(3000)]
    assert PASSWORD not in "\n".join(shown)

    platform.go(job)
    rest = list(platform.follow(job, last_event_id=seen[-1]["id"]))
    assert rest[-1] == {"event": "end", "state": "succeeded", "attempt": 1}
    assert [e["line"] for e in rest[:-1]] == list(range(len(seen), len(seen) + len(rest) - 1))

    events = seen + rest[:-1]
    plain = platform.log(job).splitlines()
    assert all(TIME.match(line) for line in plain)
    assert [TIME.sub("", line).removeprefix("[mhs] ") for line in plain] == [e["text"] for e in events]
    assert [line[:27] for line in plain] == sorted(line[:27] for line in plain)
    out = [e["text"] for e in events if e["source"] == "stdout" and e["text"].startswith("line ")]
    assert out == [f"line {i}" for i in range(3010)]
    assert [e["text"] for e in events if e["source"] == "stderr"] == [f"warning {i}" for i in range(0, 3000, 100)]
    assert any(e["text"].startswith("no newline at the end") for e in events)
    assert platform.log(job, offset=3000).splitlines() == plain[3000:]

    text = "\n".join(plain)
    assert PASSWORD not in text
    careless = [e["text"] for e in events if e["text"].startswith("careless")]
    assert careless[:2] == ["careless token [redacted]", "careless key [redacted]"]
    assert careless[2].endswith("?[redacted]")
    assert not re.search(r"eyJ[A-Za-z0-9_-]{10,}\.", text)


def test_eight_open_tails_do_not_hold_up_a_plain_request(platform: Platform, zoo: int, scan: int) -> None:
    algorithm = platform.algorithm(zoo, "Gated", env=[{"name": "BEHAVIOUR", "value": "gated"}])
    [job] = platform.submit(algorithm, scan)
    platform.wait_line(job, "waiting")
    open_tails = threading.Barrier(9)

    def tail() -> str:
        waited = False
        for event in platform.follow(job):
            if not waited:
                waited = True
                open_tails.wait(60)
            if event.get("event") == "end":
                return str(event["state"])
        return "cut off"

    with ThreadPoolExecutor(8) as pool:
        tails = [pool.submit(tail) for _ in range(8)]
        open_tails.wait(60)
        for path in ("/v1/instance-types", "/v1/jobs", "/healthz"):
            url = platform.endpoints["api_url"] + path
            # All tails are open now; with Ray Serve's default of five requests a replica this would never be answered.
            httpx.get(url, auth=platform.api.auth, timeout=20, trust_env=False).raise_for_status()
        platform.go(job)
        assert [t.result(60) for t in tails] == ["succeeded"] * 8
