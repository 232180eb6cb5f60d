"""The platform's own keys, as files that only its user can read, made at the first start."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from mhs_ray.store.sql.secrets import Vault


@dataclass(frozen=True, slots=True)
class Keys:
    """vault: seals secret columns, newest first. tokens: kid → HS256 key, oldest first. blobs: signs blob URLs."""

    vault: tuple[bytes, ...] = field(repr=False)
    tokens: dict[str, bytes] = field(repr=False)
    blobs: bytes = field(repr=False)
    registry_events: str = field(repr=False)
    ray: str = field(repr=False)
    metrics: str = field(repr=False)  # what Prometheus shows at /metrics
    platform: str  # a short name that tells this platform's containers from another's on the same machine
    client_id: str
    client_secret: str = field(repr=False)
    operator_id: str
    operator_secret: str = field(repr=False)


def write_private(path: Path, data: bytes) -> None:
    """Write a file with mode 0600, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
    temporary.replace(path)


def load_keys(folder: Path) -> Keys:
    """Return the keys in `folder`, making those that are missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(folder / ".lock"):

        def read(name: str, fresh: bytes) -> bytes:
            path = folder / name
            if not path.exists():
                write_private(path, fresh + b"\n")
            return path.read_bytes().strip()

        tokens = read("tokens", f"k1:{secrets.token_hex(32)}".encode()).decode()
        return Keys(
            vault=tuple(read("vault", Vault.new_key()).split()),
            tokens={kid: bytes.fromhex(key) for kid, _, key in (line.partition(":") for line in tokens.split())},
            blobs=bytes.fromhex(read("blobs", secrets.token_hex(32).encode()).decode()),
            registry_events=read("registry-events", secrets.token_urlsafe(32).encode()).decode(),
            ray=read("ray-token", secrets.token_hex(32).encode()).decode(),
            metrics=read("metrics-token", secrets.token_hex(32).encode()).decode(),
            platform=read("platform", secrets.token_hex(4).encode()).decode(),
            client_id=read("client-id", f"mhs-{secrets.token_hex(8)}".encode()).decode(),
            client_secret=read("client-secret", secrets.token_urlsafe(32).encode()).decode(),
            operator_id=read("operator-id", f"mhs-{secrets.token_hex(8)}".encode()).decode(),
            operator_secret=read("operator-secret", secrets.token_urlsafe(32).encode()).decode(),
        )
