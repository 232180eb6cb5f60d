"""Which images this node pulled, when each was last used, and who uses it: a mark per image, a file.

A warm start thus need not ask the engine: a question costs a process. Only a memory: where it is wrong (somebody
removed the image), the container does not start, the image is forgotten, and the next attempt pulls it.

A mark's time is the image's last use. Whoever uses the image holds a shared lock on its mark, which ends with the
process however that ends; whoever removes it takes the exclusive one without waiting.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mhs_ray.domain.models import ImageRef
from mhs_ray.ports import ContainerEngine
from mhs_ray.slides.flock import try_lock

_POLL_S: Final = 0.1
_SOON: Final = ".soon"
_SOON_S: Final = 3600.0  # what was needed soon an hour ago has been used, or is not needed


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image that was pulled here. used_at: seconds since 1970."""

    ref: ImageRef
    used_at: float


class PulledImages:
    """folder: kept by the node over its processes' lives."""

    def __init__(self, folder: Path, engine: ContainerEngine) -> None:
        self._folder = folder / engine.name

    def has(self, image: ImageRef) -> bool:
        """Say whether `image` was pulled here and nothing has spoken against it since."""
        return self._mark(image).exists()

    def digests(self) -> frozenset[str]:
        """Return the digests of all that was pulled here and not spoken against."""
        return frozenset(kept.ref.digest for kept in self.kept())

    def kept(self) -> list[KeptImage]:
        """Return all of them, the one that was used the longest time ago first."""
        found = []
        for mark in self._folder.iterdir() if self._folder.is_dir() else ():
            with suppress(OSError, ValueError, TypeError):  # gone, or being written
                found.append(KeptImage(ImageRef(**json.loads(mark.read_text())), mark.stat().st_mtime))
        return sorted(found, key=lambda kept: kept.used_at)

    def add(self, image: ImageRef) -> None:
        """Remember a pull that succeeded."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._mark(image).open("x") as mark:
                json.dump(asdict(image), mark)
        except FileExistsError:  # by another process; writing it anew would undo the locks on it
            os.utime(self._mark(image))

    def forget(self, image: ImageRef) -> None:
        """Have it pulled again next time."""
        self._mark(image).unlink(missing_ok=True)

    @contextmanager
    def hold(self, image: ImageRef) -> Iterator[bool]:
        """Keep `image` from being removed while the block lasts; yields whether it is here."""
        mark = self._mark(image)
        while True:
            with try_lock(mark, shared=True, create=False) as held:
                if held:
                    os.utime(mark)
                    yield True
                    return
            if not mark.exists():
                yield False
                return
            time.sleep(_POLL_S)  # somebody removes it just now

    @contextmanager
    def alone(self, image: ImageRef) -> Iterator[bool]:
        """Keep everybody from using `image` while the block lasts; yields False if somebody does."""
        with try_lock(self._mark(image), create=False) as mine:
            yield mine

    def need_soon(self, digests: Collection[str]) -> None:
        """Note what jobs that wait will need; it counts for an hour."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder.with_name(f"{self._folder.name}{_SOON}.{os.getpid()}")
        part.write_text(json.dumps(sorted(digests)))
        part.replace(self._folder.with_name(f"{self._folder.name}{_SOON}"))

    def needed_soon(self) -> frozenset[str]:
        """Return the digests that jobs will need soon, as far as this node was told."""
        path = self._folder.with_name(f"{self._folder.name}{_SOON}")
        with suppress(OSError, ValueError):
            if time.time() - path.stat().st_mtime < _SOON_S:
                return frozenset(json.loads(path.read_text()))
        return frozenset()

    def room_lock(self) -> Path:
        """Return the file that whoever makes room locks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder.with_name(f"{self._folder.name}.lock")

    def _mark(self, image: ImageRef) -> Path:
        return self._folder / f"{image.registry}-{image.repository}-{image.digest}".replace("/", "-").replace(":", "-")
