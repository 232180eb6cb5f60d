"""``mhs bench api``: submissions that are durably stored, beside a bare Serve endpoint and plain uvicorn.

All three take the same POST, in turns. The bare ones parse the JSON and answer; ours authenticates, checks, and commits
a task and its job to disk before it answers. The company's jobs are held back meanwhile: only the API is measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from statistics import median, quantiles
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa

from mhs_ray.bench import Benchmark, Say
from mhs_ray.bench._load import Load, load, post
from mhs_ray.bench._stage import Stage, stage
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.ports import any_free_port
from mhs_ray.platform.secrets import keys_of, with_secrets
from mhs_ray.platform.up import ray_environment
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.secrets import Vault

ROUNDS: Final = 5
SECONDS: Final = 4.0
CONNECTIONS: Final = 16


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Return requests per second (medians of rounds) and their ratios."""
    with stage(settings, say) as s:
        _hold_jobs_back(s)
        uvicorn, uvicorn_port = _uvicorn()
        try:
            _bare_serve(s)
            api = urlsplit(s.endpoints.api_url).port or 80
            keys = keys_of(s.settings)
            basic = "Basic " + base64.b64encode(f"{keys.client_id}:{keys.client_secret}".encode()).decode()
            body = json.dumps({"algorithm_id": s.algorithm_id, "scan_ids": [s.scan_id]}).encode()
            targets = {
                "ours": (api, post("/v1/tasks", body, "127.0.0.1", basic)),
                "bare_serve": (api, post("/bench/echo", body, "127.0.0.1")),
                "uvicorn": (uvicorn_port, post("/echo", body, "127.0.0.1")),
            }
            measured: dict[str, list[Load]] = {name: [] for name in targets}
            for port, request in targets.values():
                asyncio.run(_measure(port, request, 1.0))
            for i in range(ROUNDS):
                for name, (port, request) in targets.items():
                    measured[name].append(asyncio.run(_measure(port, request, SECONDS)))
                say(f"round {i + 1} of {ROUNDS}")
            stored = _stored(s)
        finally:
            uvicorn.terminate()
            uvicorn.wait()
    rates = {name: median(m.rate for m in loads) for name, loads in measured.items()}
    accepted = sum(m.statuses.get(201, 0) for m in measured["ours"])
    return {
        "benchmark": "api",
        "connections": CONNECTIONS,
        "rounds": ROUNDS,
        "accepted_per_s": round(rates["ours"], 1),
        "bare_serve_per_s": round(rates["bare_serve"], 1),
        "uvicorn_per_s": round(rates["uvicorn"], 1),
        "ratio_to_bare_serve": round(rates["ours"] / rates["bare_serve"], 3),
        "ratio_to_uvicorn": round(rates["ours"] / rates["uvicorn"], 3),
        "latency_ms": {name: _latency(loads) for name, loads in measured.items()},
        "statuses": {name: _statuses(loads) for name, loads in measured.items()},
        "accepted_in_rounds": accepted,
        "stored": stored,
        "raw": {name: [round(m.rate, 1) for m in loads] for name, loads in measured.items()},
    }


async def _measure(port: int, request: bytes, seconds: float) -> Load:
    return await load("127.0.0.1", port, lambda _i: request, connections=CONNECTIONS, seconds=seconds)


def _latency(loads: list[Load]) -> dict[str, float]:
    all_of_them = [x * 1000 for m in loads for x in m.latencies]
    return {"median": round(median(all_of_them), 1), "p99": round(quantiles(all_of_them, n=100)[98], 1)}


def _statuses(loads: list[Load]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for m in loads:
        for status, count in m.statuses.items():
            totals[str(status)] = totals.get(str(status), 0) + count
    return totals


def _database(s: Stage) -> Database:
    return Database(with_secrets(s.settings).sql_url, Vault(keys_of(s.settings).vault))


def _hold_jobs_back(s: Stage) -> None:
    db = _database(s)
    with db.write() as conn:
        conn.execute(sa.update(t.companies).values(max_active_jobs=0))
    db.close()


def _stored(s: Stage) -> int:
    db = _database(s)
    with db.read() as conn:
        count = conn.execute(sa.select(sa.func.count()).select_from(t.tasks)).scalar_one()
    db.close()
    return int(count)


def _bare_serve(s: Stage) -> None:
    environment = ray_environment(s.settings.home, os.environ)
    command = [sys.executable, "-m", "mhs_ray.actors.bench_peer"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=180)
    _wait(f"{s.endpoints.api_url}/bench/echo")


def _uvicorn() -> tuple[subprocess.Popen[bytes], int]:
    port = any_free_port()
    command = [
        sys.executable, "-m", "uvicorn", "mhs_ray.bench.echo:app", "--host", "127.0.0.1", "--port", str(port),
        "--log-level", "error", "--no-access-log",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    _wait(f"http://127.0.0.1:{port}/echo")
    return process, port


def _wait(url: str) -> None:
    for _ in range(300):
        try:
            if httpx.post(url, json={}, timeout=5, trust_env=False).status_code == 201:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


BENCHMARK: Final = Benchmark(
    "api", "durably stored submissions a second, beside a bare Serve endpoint and uvicorn", run
)
