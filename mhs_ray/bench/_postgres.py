"""A PostgreSQL of a benchmark's own: Debian's binaries, a folder that is removed again, a unix socket, durable."""

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

from mhs_ray.domain.errors import MhsError


class NoPostgresError(MhsError):
    """There is no PostgreSQL on this machine that could be started."""


def _binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4].split(".")[0]))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise NoPostgresError("there is no PostgreSQL on this machine: apt-get install postgresql")
    return path


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the SQLAlchemy URL of an empty database."""
    folder = Path(tempfile.mkdtemp(prefix="mhs-pg-", dir="/var/tmp"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        owner = pwd.getpwnam("postgres")
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    try:
        options = ["--auth=trust", "--username=mhs", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(
            [_binary("initdb"), "-D", folder / "data", *options], check=True, capture_output=True, cwd=folder, **user
        )
        command = [_binary("postgres"), "-D", str(folder / "data"), "-c", "listen_addresses="]
        with (folder / "log").open("wb") as out:
            process = subprocess.Popen(
                [*command, "-c", f"unix_socket_directories={folder}"], stdout=out, stderr=out, cwd=folder, **user
            )
        try:
            _wait(folder, process)
            yield f"postgresql://mhs@/postgres?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(f"host={folder} user=mhs dbname=postgres").close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoPostgresError(f"PostgreSQL did not start: {(folder / 'log').read_text()[-500:]}") from None
            time.sleep(0.1)
