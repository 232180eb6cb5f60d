"""What pulls of both engines share: one at a time per image and node, and an end at once when nobody wants it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from mhs_ray.domain.errors import EngineError
from mhs_ray.domain.models import ImageRef

PULL_TIMEOUT_S: Final = 3600.0
POLL_S: Final = 0.2
_SPOOL: Final = Path("/var/tmp")  # noqa: S108  what engines use themselves: on a disk, where /tmp may be memory


def free_bytes(engine: str, folder: Path) -> int:
    """Return what is free on the disk of an engine's storage, which need not be there yet. Raises EngineError."""
    try:
        return shutil.disk_usage(next(f for f in (folder, *folder.parents) if f.exists())).free
    except OSError as exc:
        raise EngineError(engine, "tell how full it is", f"{folder} cannot be looked at ({exc.strerror})") from None


def given_up(engine: str, image: ImageRef) -> EngineError:
    """Return the error of a pull that was cancelled."""
    return EngineError(engine, f"pull {image}", "it was cancelled; whoever needs the image next starts again")


@contextmanager
def one_pull(folder: Path, engine: str, image: ImageRef, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold the right to pull `image` on this node. Raises EngineError once `cancelled` says so.

    It ends with its process, so a pull that was killed keeps nobody waiting.
    """
    lock = FileLock(folder / f"pull-{image.digest[7:]}.lock")
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            if cancelled():
                raise given_up(engine, image) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def spool(folder: Path | None, image: ImageRef) -> Iterator[Path]:
    """Yield a folder for layers on their way, for the holder of `one_pull`; what a killed predecessor left goes first.

    folder: on the disk that is to hold them; None: the machine's own place.
    """
    base, prefix = folder or _SPOOL, f"mhs-pull-{image.digest[7:23]}-"
    for left in base.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)  # another user's stays
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
