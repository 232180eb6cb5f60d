"""The seams: what the platform needs from the world, in its own value types.

Adapters live beside (``engines/``, ``store/``, ``registry/``); ``tests/contract`` runs one suite per port on each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from mhs_ray.domain.models import ImageRef

# ---------------------------------------------------------------- container engine


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount. source: path on the node; target: absolute path in the container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use. cpus: cores; the rest bytes or counts. The engine clamps to what the node has."""

    cpus: float
    memory_bytes: int
    pids: int = 1024
    shm_bytes: int = 1 << 30
    open_files: int = 1 << 16


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container to start, in its sandbox.

    network: ``container:NAME`` whose network namespace it joins, or ``ns:PATH`` of the namespace itself (podman only);
    None: no network at all.
    gpus: device ids as Ray assigned them (index or UUID); () where the node has no NVIDIA device.
    labels: always set by us; an image's own labels never win.
    tmpfs: target path → size in bytes.
    runtime: OCI runtime to use instead of the engine's own choice, e.g. ``runsc``.
    """

    name: str
    image: ImageRef | str  # str: an image id that is already on the node (the pause image)
    env: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str]
    limits: Limits
    mounts: Sequence[Mount] = ()
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    command: Sequence[str] = ()  # () keeps the image's own
    network: str | None = None
    gpus: Sequence[str] = ()
    runtime: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """What the engine knows of a container. pid: of its init process on the node, None once it ended.

    exit_code: None while it runs, and for good when what watched over it was killed: a failure of the platform.
    oom_killed: the kernel killed a process of it for its memory limit; that need not be what ended it.
    """

    id: str
    name: str
    running: bool
    exit_code: int | None
    oom_killed: bool
    pid: int | None
    labels: Mapping[str, str]
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts of the engine on this node. missing: what it cannot enforce, as sentences for ``mhs doctor``.

    host_uid, host_gid: who the container's own root (podman) or user (Docker) is on the node, hence who must own
    a folder that is mounted writable. joins_namespace: it takes ``ns:PATH`` for a container's network.
    """

    name: str
    version: str
    runtime: str
    rootless: bool
    cgroup_version: int
    user_namespace: bool
    gpus: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    host_uid: int = 0
    host_gid: int = 0
    joins_namespace: bool = False


@dataclass(frozen=True, slots=True)
class EngineStorage:
    """How full an engine's storage is. image_bytes: of all images, a layer that several share counted once.

    free_bytes: of the disk that they lie on.
    """

    image_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class RegistryCredential:
    """How to log in to a registry. tls: False for plain HTTP on loopback."""

    username: str
    password: str = field(repr=False)
    tls: bool = True


Stream = Literal["stdout", "stderr"]
OnOutput = Callable[[Stream, bytes], None]
"""Called with raw pieces of output (any length, not line aligned) from one thread, in order per stream."""


class ContainerEngine(Protocol):
    """podman or Docker. Every method raises EngineError when the engine itself fails."""

    name: str

    def info(self) -> EngineInfo:
        """Ask the engine what it is and what it cannot enforce here."""

    def pull(
        self, image: ImageRef, credential: RegistryCredential | None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Make `image` present on the node, verified by digest. Does nothing if it is there.

        cancelled: asked all the while; soon after it says so the pull is ended and EngineError raised. Somebody else
        who waits for the same image then starts it again.
        """

    def run(self, spec: ContainerSpec, on_output: OnOutput, on_started: Callable[[ContainerStatus], None]) -> None:
        """Create and start a container, hand over all its output, return when output ended and it stopped.

        on_started: called once the process runs. If a live container of this name with these labels is there
        already it is adopted: output resumes with what has not ended up in this call's predecessor, as far as the
        engine can tell.
        """

    def inspect(self, name: str) -> ContainerStatus | None:
        """Return the container of this name, None when there is none."""

    def stop(self, name: str, grace_s: float) -> None:
        """TERM, then KILL after `grace_s`. Nothing happens if there is no such container."""

    def remove(self, name: str) -> None:
        """Kill and remove with its anonymous volumes. Nothing happens if there is no such container."""

    def containers(self, label: str) -> list[ContainerStatus]:
        """Return all containers, also ended ones, that carry `label`."""

    def storage(self) -> EngineStorage:
        """Say how much images take, and what is left."""

    def remove_image(self, image: ImageRef) -> bool:
        """Forget `image`, and its layers unless another image has them; nothing happens if it is not there.

        False if a container uses it, also an ended one: then it stays.
        """


# ---------------------------------------------------------------- blobs


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """size in bytes; etag as HTTP gives it, without quotes."""

    key: str
    size: int
    etag: str
    modified_at: datetime


class BlobStore(Protocol):
    """Logs, results, slides and debug files under keys like ``scans/7/slide``. Raises BlobError.

    Keys are ASCII path segments joined by ``/``; no ``.`` or ``..`` segment, nothing absolute.
    """

    def put(self, key: str, data: BinaryIO | bytes) -> BlobInfo:
        """Store all of `data` under `key`, atomically: a reader sees the old blob or the whole new one."""

    def open(self, key: str, start: int = 0, end: int | None = None) -> BinaryIO:
        """Return a stream of bytes [start, end). Raises BlobError when there is no such key."""

    def stat(self, key: str) -> BlobInfo | None:
        """Return the blob's facts, None when there is none."""

    def delete(self, key: str) -> None:
        """Remove the blob; nothing happens if there is none."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs under `prefix` in key order."""

    def sign(self, key: str, method: Literal["GET", "PUT"], expires_in: timedelta, filename: str | None = None) -> str:
        """Return a URL that does `method` (GET takes Range) on `key` until it expires, then answers 403.

        expires_in: 1 s to 7 days, as S3 has it. filename: the name a browser saves a GET under.
        HEAD works on a folder's GET URL but not on S3's, which signs the method: ask ``Range: bytes=0-0`` instead.
        """


# ---------------------------------------------------------------- image registry


@dataclass(frozen=True, slots=True)
class PushAccess:
    """Where the owner of one image definition pushes, and with what. tls: False for plain HTTP on loopback."""

    registry: str  # host[:port]
    repository: str  # the definition's own quarantine repository
    tag: str  # unique to the definition; pushes to any other tag are ignored
    username: str
    password: str = field(repr=False)
    expires_at: datetime
    tls: bool = True

    @property
    def reference(self) -> str:
        """Return ``registry/repository:tag``."""
        return f"{self.registry}/{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Admission:
    """An image that may run here.

    digest: of the one linux/amd64 manifest that is to be promoted; where a multi-platform index was pushed it
    differs from the digest that was asked for. size_bytes: compressed, config included.
    details: JSON for people: architecture, os, uncompressed_size, layers [{digest, size, created_by}], entrypoint, cmd,
    workdir, user, labels, env_names, volumes, setuid_files, warnings, and ca_bundles (absolute paths in the image).
    """

    digest: str
    size_bytes: int
    details: Mapping[str, Any]


class ImageRegistry(Protocol):
    """Quarantine and trusted repositories of image definitions. Raises RegistryError when the registry fails."""

    def push_access(self, image_id: int, company_id: int, expires_at: datetime) -> PushAccess:
        """Return target and credential for pushing to this definition, good until `expires_at` and for nothing else."""

    def pushed(self, image_id: int) -> str | None:
        """Ask now for the digest of what lies at the definition's push tag; None when nothing does."""

    def admit(self, image_id: int, digest: str) -> Admission:
        """Check a quarantined image whole, by digest. Raises AdmissionError, whose text is for the image's owner."""

    def promote(self, image_id: int, digest: str, number: int) -> ImageRef:
        """Copy an admitted manifest to the trusted repository as version `number`, digest kept. May be repeated."""

    def pull_credential(self, image: ImageRef) -> RegistryCredential:
        """Return a short-lived login for a node that pulls this trusted image, good for its repository only."""

    def remove(self, image_id: int) -> None:
        """Forget all that was pushed or promoted for this definition; nothing happens if there is nothing."""
