"""The API while PostgreSQL is stopped and started again: 503 and when to come back, never 500, and nothing is lost."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.webhook_example import WEBHOOK_EXAMPLE
from tests.api_fixtures import Server, api_server
from tests.integration.outages.postgres import Pg
from tests.pg_fixtures import why_no_postgres


@contextmanager
def _running() -> Iterator[tuple[Pg, Server]]:
    with tempfile.TemporaryDirectory(prefix="mhs-pg-", ignore_cleanup_errors=True) as name:
        server = Pg(Path(name))
        server.start()
        try:
            with tempfile.TemporaryDirectory(prefix="mhs-h-") as home:
                url = f"postgresql://mhs@/postgres?host={name}"
                with api_server(Path(home), database_url=url) as api:
                    yield server, api
        finally:
            if server.process.poll() is None:
                server.stop()


def test_an_outage_of_the_database_is_503_and_what_was_accepted_is_there_after_it() -> None:
    if reason := why_no_postgres():
        pytest.skip(reason)
    with _running() as (database, api):
        company = api.world.company()
        api.world.algorithm(company, name="Mitosis count")
        with api.user(company) as http:
            accepted = http.post("/webhook", json=WEBHOOK_EXAMPLE)
            assert accepted.status_code == 201
            for how in (signal.SIGINT, signal.SIGQUIT):  # a shutdown, and one that cuts all at once
                database.stop(how)
                for answer in (
                    http.get("/v1/jobs"),
                    http.post("/webhook", json={**WEBHOOK_EXAMPLE, "task_id": "dGFzazo5"}),
                    http.post(f"/v1/jobs/{accepted.json()['job_ids'][0]}/cancel"),
                ):
                    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/overloaded")
                    assert int(answer.headers["Retry-After"]) > 0
                assert http.get("/healthz").status_code == 200
                assert http.get("/readyz").status_code == 503
                database.start()
                again = http.post("/webhook", json=WEBHOOK_EXAMPLE)
                assert (again.status_code, again.json()["job_ids"]) == (200, accepted.json()["job_ids"])
            assert [j["state"] for j in http.get("/v1/jobs").json()["items"]] == ["queued"]
