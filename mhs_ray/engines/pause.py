"""The image whose container holds a job's network namespace: one static binary that only waits."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import labels
from mhs_ray.engines.build import image_tools
from mhs_ray.ports import ContainerSpec, Limits

if TYPE_CHECKING:
    from mhs_ray.ports import ContainerEngine

PAUSE_COMMAND: Final = ("/catatonit", "-P")
PAUSE_VERSION_COMMAND: Final = ("/catatonit", "--version")

_PLACES: Final = ("/usr/bin/catatonit", "/usr/libexec/podman/catatonit", "/usr/libexec/catatonit/catatonit",
                  "/usr/local/libexec/podman/catatonit", "/usr/lib/podman/catatonit")  # fmt: skip


def ensure_pause_image(engine: ContainerEngine) -> str:
    """Return the tag of the pause image, ``localhost/mhs-pause:<hash of its binary>``, made if it is not there.

    Run it with `PAUSE_COMMAND`. Raises EngineError when this node has no static catatonit.
    """
    binary = _catatonit(engine.name)
    tag = f"localhost/mhs-pause:{_sha256(binary, binary.stat().st_mtime_ns)[:16]}"
    tools = image_tools(engine)
    if tools.image_id(tag) is None:
        with tempfile.TemporaryDirectory(prefix="mhs-pause-") as folder:
            rootfs = Path(folder, "rootfs.tar")
            with tarfile.open(rootfs, "w") as tar:
                _add(tar, "catatonit", binary.read_bytes())
                for name in ("etc/hosts", "etc/resolv.conf", "etc/hostname"):  # mount points for the engine's files
                    _add(tar, name, b"")
            tools.import_rootfs(rootfs, tag)
    return tag


def probe_spec(image: str, network: str | None = None) -> ContainerSpec:
    """Return a short container of the pause image, to see whether it starts on this node as models would."""
    return ContainerSpec(
        name=f"mhs-probe-{os.urandom(6).hex()}",
        image=image,
        env={},
        labels={labels.ROLE: "probe"},
        limits=Limits(cpus=1, memory_bytes=256 << 20, pids=64, shm_bytes=1 << 20),
        command=PAUSE_VERSION_COMMAND,
        tmpfs={"/tmp": 1 << 20},  # noqa: S108  the container's
        network=network,
    )


def _catatonit(engine: str) -> Path:
    found = shutil.which("catatonit") or next((place for place in _PLACES if Path(place).is_file()), None)
    if found is None:
        raise EngineError(engine, "make the pause image", "this node has no catatonit; apt-get install catatonit")
    return Path(found)


@functools.lru_cache(maxsize=4)
def _sha256(path: Path, _changed_ns: int) -> str:
    content = path.read_bytes()
    if b"/ld-" in content[:4096]:  # names its loader: the ELF interpreter sits in the first page
        raise EngineError(
            "this node", "make the pause image", f"{path} is not static; use the one of Debian's catatonit"
        )
    return hashlib.sha256(content).hexdigest()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))
