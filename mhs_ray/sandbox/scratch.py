"""The writable places of one attempt, limited in bytes and in files, and gone with it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from mhs_ray.domain.errors import SandboxError
from mhs_ray.ports import Mount

log = logging.getLogger(__name__)

TARGETS: Final = ("/tmp", "/var/tmp", "/input", "/output", "/scratch")  # noqa: S108
"""Where a container may write: the contract promises /tmp, Techcyte's template uses /input and /output."""

RUN_BYTES: Final = 16 << 20
_MIN_BYTES: Final = 16 << 20
_BYTES_PER_INODE: Final = 16 << 10
_IMAGE: Final = "scratch.ext4"
_MOUNTED: Final = "scratch"


class Scratch(Protocol):
    """Writable places. mounts and tmpfs are for the model container's ContainerSpec."""

    mounts: Sequence[Mount]
    tmpfs: Mapping[str, int]

    def close(self) -> None:
        """Remove everything that was written. Nothing happens a second time."""


class TmpfsScratch:
    """Places in memory, where no file system can be made: what is written counts against the memory limit."""

    def __init__(self, size_bytes: int) -> None:
        self.mounts: Sequence[Mount] = ()
        self.tmpfs: Mapping[str, int] = {**dict.fromkeys(TARGETS, size_bytes), "/run": RUN_BYTES}

    def close(self) -> None:
        """Nothing to do: the places end with the container."""


class LoopScratch:
    """Places on a file system of their own: a sparse file, mounted nosuid and nodev. Needs root.

    folder: where the file and its mount point go; a mount that is there already is used as it is.
    owner: user and group id on the node of the container's root or user. Raises SandboxError.
    """

    def __init__(self, folder: Path, size_bytes: int, owner: tuple[int, int] = (0, 0)) -> None:
        self._folder = folder = folder.resolve()  # as the kernel names its mounts
        mounted = folder / _MOUNTED
        try:
            if str(mounted) not in mounts_below(folder):
                _make(folder / _IMAGE, mounted, max(size_bytes, _MIN_BYTES), owner)
            self.mounts: Sequence[Mount] = tuple(
                Mount(_place(mounted, target, owner), target, read_only=False) for target in TARGETS
            )
        except (OSError, subprocess.SubprocessError) as e:
            self.close()
            detail = e.stderr.decode(errors="replace").strip() if isinstance(e, subprocess.CalledProcessError) else e
            raise SandboxError(f"no scratch file system can be made below {folder}: {detail}") from e
        self.tmpfs: Mapping[str, int] = {"/run": RUN_BYTES}

    def close(self) -> None:
        """Unmount and delete. Nothing happens a second time."""
        unmount_below(self._folder)
        (self._folder / _IMAGE).unlink(missing_ok=True)
        if (self._folder / _MOUNTED).is_dir():
            (self._folder / _MOUNTED).rmdir()


def open_scratch(folder: Path, size_bytes: int, owner: tuple[int, int] = (0, 0)) -> Scratch:
    """Return a LoopScratch where this node can make one, else a TmpfsScratch."""
    if os.geteuid() == 0 and shutil.which("mkfs.ext4") and Path("/dev/loop-control").exists():
        try:
            return LoopScratch(folder, size_bytes, owner)
        except SandboxError as e:
            log.warning("%s; using memory instead", e)
    return TmpfsScratch(size_bytes)


def sweep(root: Path, keep: Collection[str]) -> list[str]:
    """Remove what dead attempts left below `root`: every folder whose name is not in `keep`; return those removed.

    A folder that something still holds is left for the next time.
    """
    removed = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.name in keep or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            remove_folder(folder)
        except OSError as e:
            log.warning("the sandbox of a dead attempt, %s, stays for now: %s", folder, e)
        else:
            removed.append(folder.name)
    return removed


def remove_folder(folder: Path) -> None:
    """Unmount all below `folder` and delete it. Raises OSError rather than delete through a mount."""
    unmount_below(folder)
    if folder.is_dir():
        shutil.rmtree(folder)


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points at or below `folder`, deepest first."""
    top = str(folder.resolve())
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4])
        if point == top or point.startswith(top + "/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def unmount_below(folder: Path) -> None:
    """Detach every mount at or below `folder`; what still uses one keeps it until it ends. Raises OSError."""
    for point in mounts_below(folder):
        done = subprocess.run(["umount", "--lazy", "--no-canonicalize", point], capture_output=True, check=False)
        if done.returncode != 0 and point in mounts_below(folder):
            raise OSError(f"umount {point}: {done.stderr.decode(errors='replace').strip()}")


def _make(image: Path, mounted: Path, size_bytes: int, owner: tuple[int, int]) -> None:
    free = shutil.disk_usage(image.parent).free
    if size_bytes > free:
        raise OSError(f"{size_bytes} bytes are wanted, {free} are free")
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)
    # No journal: after a crash of the node there is nothing to recover.
    options = ["-O", "^has_journal", "-m", "0", "-i", str(_BYTES_PER_INODE)]
    extended = f"nodiscard,lazy_itable_init=1,root_owner={owner[0]}:{owner[1]}"
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, "-E", extended, str(image)], capture_output=True, check=True)
    mounted.mkdir(mode=0o755, exist_ok=True)
    command = ["mount", "-t", "ext4", "-o", "loop,nosuid,nodev,noatime,noinit_itable", str(image), str(mounted)]
    subprocess.run(command, capture_output=True, check=True)


def _place(mounted: Path, target: str, owner: tuple[int, int]) -> Path:
    """Return the folder behind `target`, writable by every user of the container: its image may name any."""
    place = mounted / target.strip("/").replace("/", "-")
    if not place.is_dir():
        place.mkdir()
        os.chown(place, *owner)
        place.chmod(0o1777)
    return place
