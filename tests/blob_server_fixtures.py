"""The blob server as its own process, as the platform runs it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mhs_ray.store.blobs.local import LocalBlobs
from mhs_ray.store.blobs.server import ServerConfig
from tests.s3_fixtures import free_ports

KEY = "5e" * 32


@dataclass(frozen=True)
class BlobServer:
    """A running server: the same store from this side, and its process id."""

    store: LocalBlobs
    pid: int
    log: Path

    def peak_rss_bytes(self) -> int:
        """Return the most memory the process ever held."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def blob_server(folder: Path, **settings: Any) -> Iterator[BlobServer]:
    """Run a server on `folder` for as long as the block lasts; settings: of `ServerConfig`."""
    (port,) = free_ports(1)
    config = ServerConfig(
        **{"root": folder / "store", "port": port, "keys": {"1": KEY}, "current_key": "1", "min_free": 0, **settings}
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "server.json")
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mhs_ray.store.blobs.server", "--config", folder / "server.json"],
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz").raise_for_status()
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield BlobServer(config.store(), process.pid, log)
    finally:
        process.terminate()
        process.wait(15)
