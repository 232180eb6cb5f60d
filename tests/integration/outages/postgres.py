"""A PostgreSQL that can be stopped and started again."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from tests.pg_fixtures import _binary


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
