"""The platform's own keys, as files that only its user can read, made at the first start."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from filelock import FileLock

from mhs_ray.store.sql.secrets import Vault

T = TypeVar("T")


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


_FRESH: Final[Mapping[str, Callable[[], bytes]]] = {
    "vault": Vault.new_key,
    "tokens": lambda: f"k1:{secrets.token_hex(32)}".encode(),
    "blobs": lambda: secrets.token_hex(32).encode(),
    "registry-events": lambda: secrets.token_urlsafe(32).encode(),
    "ray-token": lambda: secrets.token_hex(32).encode(),
    "metrics-token": lambda: secrets.token_hex(32).encode(),
    "platform": lambda: secrets.token_hex(4).encode(),
    "client-id": lambda: f"mhs-{secrets.token_hex(8)}".encode(),
    "client-secret": lambda: secrets.token_urlsafe(32).encode(),
    "operator-id": lambda: f"mhs-{secrets.token_hex(8)}".encode(),
    "operator-secret": lambda: secrets.token_urlsafe(32).encode(),
}
KEY_NAMES: Final = tuple(_FRESH)
"""Of the files in ``keys``, and of the keys in a secret."""


def fresh_key(name: str) -> bytes:
    """Return a new key of this name."""
    return _FRESH[name]()


def load_keys(folder: Path, given: Mapping[str, str] | None = None, *, write: bool = True) -> Keys:
    """Return the keys in `folder`, making those that are missing. given: keys that come from elsewhere, by name.

    write: whether files are made; else what would be made is made up. Raises ValueError that names a key which is not
    of its form.
    """
    elsewhere = given or {}
    with ExitStack() as stack:
        if write:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(FileLock(folder / ".lock"))

        def read(name: str) -> str:
            if name in elsewhere and (name != "ray-token" or not write):
                return elsewhere[name].strip()
            path = folder / name
            if not write and not path.exists():
                return fresh_key(name).decode()
            if name in elsewhere:  # Ray itself reads this one from its file
                if not path.exists() or path.read_text().strip() != elsewhere[name].strip():
                    write_private(path, elsewhere[name].strip().encode() + b"\n")
            elif not path.exists():
                write_private(path, fresh_key(name) + b"\n")
            return path.read_text().strip()

        return Keys(
            vault=tuple(key.encode() for key in _formed("vault", read("vault").split(), _vault_key)),
            tokens=dict(_formed("tokens", read("tokens").split(), _token_key)),
            blobs=_formed("blobs", [read("blobs")], bytes.fromhex)[0],
            registry_events=read("registry-events"),
            ray=read("ray-token"),
            metrics=read("metrics-token"),
            platform=read("platform"),
            client_id=read("client-id"),
            client_secret=read("client-secret"),
            operator_id=read("operator-id"),
            operator_secret=read("operator-secret"),
        )


def _formed(name: str, texts: list[str], parse: Callable[[str], T]) -> list[T]:
    """Parse each text; an error names the key and shows nothing of it."""
    try:
        found = [parse(text) for text in texts]
    except ValueError:
        raise ValueError(f"{name} cannot be read") from None
    if not found:
        raise ValueError(f"{name} is empty")
    return found


def _vault_key(text: str) -> str:
    Vault((text.encode(),))
    return text


def _token_key(line: str) -> tuple[str, bytes]:
    kid, _, text = line.partition(":")
    key = bytes.fromhex(text)
    if not kid or len(key) < 32:
        raise ValueError
    return kid, key
