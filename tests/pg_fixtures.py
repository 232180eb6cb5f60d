"""A real PostgreSQL for the tests: Debian's, on a unix socket in a temp folder, without fsync."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg


def _binary(name: str) -> str | None:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4].split(".")[0]))
    return str(versions[-1]) if versions else shutil.which(name)


def why_no_postgres() -> str | None:
    """Return why no server can be started here, None when one can."""
    if _binary("initdb") is None or _binary("postgres") is None:
        return "no PostgreSQL on this machine: apt-get install postgresql"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root and there is no user postgres: apt-get install postgresql"
    return None


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server for as long as the block lasts."""
    initdb, server = _binary("initdb"), _binary("postgres")
    assert initdb is not None
    assert server is not None
    user: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mhs-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.geteuid() == 0:  # PostgreSQL refuses root
            owner = pwd.getpwnam("postgres")
            user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        options = ["--no-sync", "--auth=trust", "--username=mhs", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run([initdb, "-D", folder / "data", *options], check=True, capture_output=True, cwd=folder, **user)
        settings = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "max_connections=200")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [server, "-D", folder / "data", *(part for s in settings for part in ("-c", s))],
                stdout=log, stderr=log, cwd=folder, **user,
            )  # fmt: skip
        try:
            found = Postgres(folder)
            found.wait(process)
            yield found
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown
            process.wait(30)


class Postgres:
    """A running server; makes databases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql://mhs@/{database}?host={self._folder}"

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Return once the server answers."""
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (self._folder / "log").read_text()
            try:
                self._admin("SELECT 1")
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.1)

    def create(self) -> str:
        """Make an empty database; return its name."""
        self._count += 1
        name = f"mhs_{self._count}"
        self._admin(f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def drop(self, name: str) -> None:
        """Remove a database with whatever is still connected to it."""
        self._admin(f"DROP DATABASE {name} WITH (FORCE)")

    def _admin(self, statement: str) -> None:
        with psycopg.connect(f"host={self._folder} user=mhs dbname=postgres", autocommit=True) as conn:
            conn.execute(statement)  # names are ours
