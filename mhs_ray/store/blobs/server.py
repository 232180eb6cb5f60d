"""The process that serves a folder's signed URLs: ``python -m mhs_ray.store.blobs.server --config FILE``.

The file is JSON and holds secrets, so only its owner may read it::

    {"root": "/var/lib/mhs/blobs", "host": "127.0.0.1", "port": 8090,
     "keys": {"1": "<hex>"}, "current_key": "1",
     "quota": "500GiB", "min_free": "5GiB", "max_blob": "256GiB", "max_blob_by_prefix": {"jobs/": "4GiB"}}

Prints nothing; ``GET /healthz`` answers once it serves. Ends on TERM once running answers are out (10 s at most).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import uvicorn
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from mhs_ray.domain.errors import BlobError, InvalidInputError, MhsError
from mhs_ray.store.blobs.http import BlobApp, HttpLimits
from mhs_ray.store.blobs.local import LocalBlobs, LocalLimits
from mhs_ray.store.blobs.signing import SigningKeys

log = logging.getLogger(__name__)


class ServerConfig(BaseModel):
    """What the server is told. keys: version → secret in hex; min_free: bytes always left on the disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    keys: Mapping[str, str] = Field(repr=False)
    current_key: str
    quota: ByteSize | None = None
    min_free: ByteSize = ByteSize(1 << 30)
    retry_after_s: int = Field(300, ge=1)
    max_blob: ByteSize = ByteSize(256 << 30)
    max_blob_by_prefix: Mapping[str, ByteSize] = Field(default_factory=dict)
    idle_s: float = Field(60.0, gt=0)
    cors_origins: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write the file so that only its owner can read it."""
        data = json.dumps(self.model_dump(mode="json"), indent=1).encode()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            os.fchmod(out.fileno(), 0o600)
            out.write(data)

    @classmethod
    def load(cls, path: Path) -> ServerConfig:
        """Read the file. Raises InvalidInputError when it is open to others or makes no sense."""
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise InvalidInputError.at("$", f"{path} holds signing keys and others can read it: chmod 600 {path}")
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InvalidInputError.at("$", f"cannot read {path}: {error.strerror}") from error
        except ValidationError as error:
            # Not pydantic's own text: it quotes the input, keys and all.
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise InvalidInputError.at("$", f"{path}: {faults}") from None

    def store(self) -> LocalBlobs:
        """Return the store to serve. Raises InvalidInputError for keys that are none, BlobError for a bad root."""
        try:
            keys = SigningKeys(self.current_key, {v: bytes.fromhex(k) for v, k in self.keys.items()})
        except ValueError:
            message = "need hex secrets of at least 16 bytes, and current_key among them"
            raise InvalidInputError.at("$.keys", message) from None
        limits = LocalLimits(self.quota, self.min_free, self.retry_after_s)
        return LocalBlobs(self.root, f"http://{self.host}:{self.port}", keys, limits)


def serve(config: ServerConfig) -> None:
    """Serve until TERM."""
    store = config.store()
    used, left = store.recount(), store.sweep_incoming(timedelta(days=7))
    log.info("%d bytes in %s; removed %d uploads that were left behind", used, config.root, left)
    limits = HttpLimits(config.max_blob, dict(config.max_blob_by_prefix), config.idle_s, config.cors_origins)
    uvicorn.run(
        BlobApp(store, limits),
        host=config.host,
        port=config.port,
        lifespan="off",
        access_log=False,  # its lines would hold signatures
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code, 2 for a bad configuration."""
    parser = argparse.ArgumentParser(prog="mhs_ray.store.blobs.server", description="Serve a folder's signed URLs.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(ServerConfig.load(parser.parse_args(arguments).config))
    except (BlobError, MhsError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
