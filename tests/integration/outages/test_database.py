"""The API while PostgreSQL is stopped and started again: 503 and when to come back, never 500, and nothing is lost."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from api.webhook_example import WEBHOOK_EXAMPLE
from tests.api_fixtures import Server, api_server
from tests.pg_fixtures import _binary, why_no_postgres


class Pg:
    """A server that can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._user = folder, {}  # type: Path, dict[str, Any]
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        options = ["--no-sync", "--auth=trust", "--username=mhs", "--encoding=UTF8", "--locale=C.UTF-8"]
        initdb = str(_binary("initdb"))
        subprocess.run(
            [initdb, "-D", folder / "data", *options], check=True, capture_output=True, cwd=folder, **self._user
        )

    def start(self) -> None:
        settings = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off")
        self.process = subprocess.Popen(
            [str(_binary("postgres")), "-D", self.folder / "data", *(part for s in settings for part in ("-c", s))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **self._user,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(f"host={self.folder} user=mhs dbname=postgres").close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(how)
        self.process.wait(30)


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
