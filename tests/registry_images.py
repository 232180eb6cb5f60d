"""Images written by hand, honest and hostile, and a source that serves them from memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mhs_ray.registry.client import Manifest
from mhs_ray.registry.media import OCI_INDEX, OCI_MANIFEST

CONFIG = "application/vnd.oci.image.config.v1+json"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
TAR = "application/vnd.oci.image.layer.v1.tar"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
Members = Sequence[tuple[str, bytes] | tarfile.TarInfo]


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(members: Members) -> bytes:
    """Return a tar archive; a TarInfo stands for a member without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mode = len(member[1]), 0o755
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def special(name: str, kind: bytes, linkname: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, linkname, mode
    return info


@dataclass
class Memory:
    """An ImageSource in memory. blobs are cut into small pieces so that nothing relies on their borders."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    piece: int = 997

    def manifest(self, digest: str) -> Manifest | None:
        return self.manifests.get(digest)

    @contextmanager
    def blob(self, digest: str) -> Iterator[Iterator[bytes]]:
        data = self.blobs[digest]
        yield (data[i : i + self.piece] for i in range(0, len(data), self.piece))

    def add(self, data: bytes) -> str:
        self.blobs[sha(data)] = data
        return sha(data)

    def add_manifest(self, document: Any, media_type: str = OCI_MANIFEST) -> str:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        found = Manifest(media_type, body)
        self.manifests[found.digest] = found
        return found.digest


def image(
    source: Memory,
    layers: Sequence[Members | bytes] = ((("app/main.py", b"print(1)\n"),),),
    run: dict[str, Any] | None = None,
    change_config: Callable[[dict[str, Any]], None] | None = None,
    change_manifest: Callable[[dict[str, Any]], None] | None = None,
    layer_type: str = GZIP,
    pack: Callable[[bytes], bytes] = lambda data: gzip.compress(data, mtime=0),
    manifest_type: str = OCI_MANIFEST,
) -> str:
    """Put an image into `source` and return its manifest's digest. layers: members, or the bytes of a tar archive."""
    archives = [layer if isinstance(layer, bytes) else tar(layer) for layer in layers]
    packed = [pack(archive) for archive in archives]
    config: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/app/main.py"], "WorkingDir": "/app", **(run or {})},
        "rootfs": {"type": "layers", "diff_ids": [sha(archive) for archive in archives]},
        "history": [{"created_by": f"COPY layer {i}"} for i in range(len(archives))],
    }
    if change_config:
        change_config(config)
    body = json.dumps(config).encode()
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": {"mediaType": CONFIG, "digest": source.add(body), "size": len(body)},
        "layers": [{"mediaType": layer_type, "digest": source.add(data), "size": len(data)} for data in packed],
    }
    if change_manifest:
        change_manifest(manifest)
    return source.add_manifest(manifest, manifest_type)


def index(source: Memory, entries: Sequence[tuple[str, str]], media_type: str = OCI_INDEX) -> str:
    """Put an index into `source`. entries: (manifest digest, ``os/architecture``)."""
    listed = []
    for digest, platform in entries:
        system, _, architecture = platform.partition("/")
        size = len(source.manifests[digest].body) if digest in source.manifests else 2
        listed.append(
            {
                "mediaType": OCI_MANIFEST,
                "digest": digest,
                "size": size,
                "platform": {"os": system, "architecture": architecture},
            }
        )
    return source.add_manifest({"schemaVersion": 2, "mediaType": media_type, "manifests": listed}, media_type)
