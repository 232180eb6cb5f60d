"""Backup and restore of what cannot be made again: database, blobs, keys, and the registry's images.

::

    DIR/manifest.json      what it is, of when, and the SHA-256 of every other file; written last
    DIR/database           SQLite file, or pg_dump's custom format
    DIR/keys/              those of the home: without `vault` no secret in the database can be opened
    DIR/blobs.jsonl        key, size and SHA-256 of each blob
    DIR/blobs/ab/ab12…     their bytes, by SHA-256
    DIR/registry/          the registry's folder

The database goes first: rows name only blobs that are there already, so whatever the copy names is found after it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from mhs_ray import __version__
from mhs_ray.domain.errors import BlobError, ConflictError, MhsError
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import write_private
from mhs_ray.platform.secrets import given_secrets, keys_of, with_secrets
from mhs_ray.ports import BlobStore
from mhs_ray.services.policy import open_blobs
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.dump import doubt_deliveries, dump, load
from mhs_ray.store.sql.secrets import Vault

log = logging.getLogger(__name__)

_PIECE: Final = 1 << 20
_FORMAT: Final = 1
_NOWHERE: Final = Endpoints("", "http://127.0.0.1:9", "", "", "")  # nothing is signed here
Say = Callable[[str], None]


class BackupError(MhsError):
    """A backup that is not whole, or does not fit here."""


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup holds. blobs: how many; blob_bytes: of them together; images: whether the registry is in it."""

    folder: str
    taken_at: str
    database: str
    blobs: int
    blob_bytes: int
    images: bool


def backup(settings: Settings, folder: Path, say: Say, *, blobs: bool = True, images: bool = True) -> BackedUp:
    """Copy everything to `folder`, which must be new or empty; the platform may run meanwhile.

    blobs: False where the bucket has copies of its own. Raises ConflictError, BackupError.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConflictError(f"{folder} is not empty; a backup gets a folder of its own")
    own_keys = (settings.home / "keys" / "vault").exists()
    if not own_keys and "vault" not in given_secrets(settings.secrets):
        raise ConflictError(f"there is no platform in {settings.home}; is MHS_HOME right?")
    settings = with_secrets(settings)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # keys lie in it
    taken_at = datetime.now(UTC)
    if own_keys:
        say("copying the keys")
    else:
        say("the keys are kept elsewhere (MHS_SECRETS__…) and are not in this backup: keep a copy of them")
    if (settings.home / "keys").is_dir():  # the registry's certificate at least
        shutil.copytree(settings.home / "keys", folder / "keys", ignore=shutil.ignore_patterns(".*"))
    say("copying the database")
    kind = dump(settings.sql_url, folder / "database")
    count = size = 0
    if blobs:
        say("copying the blobs")
        count, size = _copy_blobs(open_blobs(settings, _NOWHERE, keys_of(settings)), folder)
    registry = settings.home / "registry"
    with_images = images and registry.is_dir()
    if with_images:
        say("copying the registry's images")
        _copy_registry(registry, folder / "registry")
    manifest = {
        "format": _FORMAT, "version": __version__, "taken_at": taken_at.isoformat(), "database": kind, "keys": own_keys,
        "blobs": count if blobs else None, "images": with_images,
        "sha256": {str(f.relative_to(folder)): _sha256(f) for f in _files(folder) if not _is_blob(f, folder)},
    }  # fmt: skip
    write_private(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return BackedUp(str(folder), taken_at.isoformat(), kind, count, size, with_images)


def restore(settings: Settings, folder: Path, say: Say) -> BackedUp:
    """Fill an empty home (and an empty PostgreSQL database) from a backup. Start the platform afterwards.

    Everything is checked before anything is written. Raises ConflictError, BackupError.
    """
    settings = with_secrets(settings)
    manifest = _checked(folder, say)
    if not manifest["keys"] and "vault" not in given_secrets(settings.secrets):
        raise BackupError("the backup's keys are kept elsewhere: set MHS_SECRETS__… as it was there, then restore")
    wanted = "sqlite" if settings.sql_url.startswith("sqlite") else "postgresql"
    if manifest["database"] != wanted:
        raise BackupError(f"the backup is of {manifest['database']}, and MHS_DATABASE_URL here leads to {wanted}")
    if (settings.home / "keys").exists() and any((settings.home / "keys").iterdir()):
        raise ConflictError(f"{settings.home} is in use; restore into an empty MHS_HOME")
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.home.chmod(0o711)
    say("restoring the database")
    load(settings.sql_url, folder / "database")
    say("restoring the keys")
    if (folder / "keys").is_dir():
        shutil.copytree(folder / "keys", settings.home / "keys", dirs_exist_ok=True)
        (settings.home / "keys").chmod(0o700)
    keys = keys_of(settings)
    taken_at = datetime.fromisoformat(manifest["taken_at"])
    db = Database(settings.sql_url, Vault(keys.vault))
    try:
        db.migrate()  # a backup of an older version
        doubtful = doubt_deliveries(db, taken_at)
    finally:
        db.close()
    if doubtful:
        say(f"{doubtful} deliveries were under way: Techcyte is asked for each before it is sent")
    count = size = 0
    if manifest["blobs"] is not None:
        say("restoring the blobs")
        store = open_blobs(settings, _NOWHERE, keys)
        for entry in _listed(folder):
            with _blob_file(folder, entry["sha256"]).open("rb") as data:
                store.put(entry["key"], data)
            count, size = count + 1, size + int(entry["size"])
    if manifest["images"]:
        say("restoring the registry's images")
        shutil.copytree(folder / "registry", settings.home / "registry", dirs_exist_ok=True)
    return BackedUp(str(folder), manifest["taken_at"], manifest["database"], count, size, manifest["images"])


def _copy_blobs(store: BlobStore, folder: Path) -> tuple[int, int]:
    count = size = 0
    (folder / "blobs").mkdir()
    with (folder / "blobs.jsonl").open("w") as listing:
        for info in store.list(""):
            try:
                with store.open(info.key) as source:
                    digest, length = _keep(source, folder)
            except BlobError:
                if store.stat(info.key) is None:
                    continue  # deleted since it was listed
                raise
            listing.write(json.dumps({"key": info.key, "size": length, "sha256": digest}) + "\n")
            count, size = count + 1, size + length
    return count, size


def _keep(source: BinaryIO, folder: Path) -> tuple[str, int]:
    part, digest, length = folder / "blobs" / ".part", hashlib.sha256(), 0
    with part.open("wb") as out:
        while piece := source.read(_PIECE):
            out.write(piece)
            digest.update(piece)
            length += len(piece)
    target = _blob_file(folder, digest.hexdigest())
    target.parent.mkdir(exist_ok=True)
    part.replace(target)
    return digest.hexdigest(), length


def _copy_registry(source: Path, target: Path) -> None:
    """Copy a folder that is written to meanwhile: what is gone when its turn comes was an upload's, or deleted."""

    def copy(src: str, dst: str) -> str:
        try:
            return str(shutil.copy2(src, dst))
        except FileNotFoundError:
            log.info("gone meanwhile: %s", src)
            return dst

    shutil.copytree(source, target, copy_function=copy, ignore=shutil.ignore_patterns("_uploads"))


def _checked(folder: Path, say: Say) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        sums: dict[str, str] = manifest["sha256"]
        form = manifest["format"]
    except (OSError, ValueError, KeyError):
        raise BackupError(
            f"{folder} holds no whole backup: its manifest.json is written last, and is not there"
        ) from None
    if form != _FORMAT:
        raise BackupError(f"the backup is of format {form}; this version reads {_FORMAT}")
    say("checking the backup")
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file() or _sha256(file) != expected:
            raise BackupError(f"{file} is missing or damaged; use another backup")
    if manifest["blobs"] is not None:
        for entry in _listed(folder):
            file = _blob_file(folder, entry["sha256"])
            if not file.is_file() or _sha256(file) != entry["sha256"]:
                raise BackupError(f"blob {entry['key']} is missing or damaged in {folder}; use another backup")
    return manifest


def _listed(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / "blobs.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


def _blob_file(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest[:2] / digest


def _is_blob(file: Path, folder: Path) -> bool:
    return folder / "blobs" in file.parents


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in sorted(names))


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
