"""The actor that reads tiles: into memory shared on its node, or through the object store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.bands import BatchLimits
from mhs_ray.slides.plan import TilePlan, TileRequest
from mhs_ray.slides.remote import RemoteOptions
from mhs_ray.slides.ring import Ring
from mhs_ray.slides.tile_reader import TileReader, Tissue, open_tile_reader


@dataclass(frozen=True, slots=True)
class TileSlide:
    """A slide by path or URL. name: what rows and messages call it, the last part of the path when None."""

    where: str = field(repr=False)  # may be presigned
    name: str | None = None


class Reader:
    """The actor. It keeps the slides it read last open.

    ring: address, slots and bytes of a slot of the memory it will write to. first: slots that it gets ready at once.
    """

    def __init__(
        self, remote: RemoteOptions | None, ring: tuple[str, int, int] | None = None, first: Sequence[int] = ()
    ) -> None:
        self._remote = remote
        self._open: dict[str, TileReader] = {}
        self._rings: dict[str, Ring] = {}
        if ring is not None:
            with suppress(SlideError, OSError):  # `read` says it
                memory = self._ring(*ring)
                for slot in first:
                    memory.touch(slot)

    def node(self) -> str:
        """Return Ray's id of the node."""
        return str(ray.get_runtime_context().get_node_id())

    def plan(self, slide: TileSlide, request: TileRequest, tissue: bool | Tissue) -> TilePlan:
        """Return the coordinates of a slide's tiles."""
        return self._slide(slide).plan(request, tissue=tissue)

    def read(
        self, slide: TileSlide, part: TilePlan, batch: int, ring: tuple[str, int, int] | None, slots: Sequence[int]
    ) -> list[NDArray[np.uint8]] | None:
        """Read the tiles of `part`: into `slots` of `ring`, `batch` tiles each, or return them."""
        reader = self._slide(slide)
        # Enough for whole batches, whatever the tiles' size: slots and indices are counted in them.
        limits = BatchLimits(batch, 1, max(BatchLimits().memory_bytes, 4 * batch * part.size.pixels * 3))
        if ring is None:
            return [b.pixels for b in reader.batches(part, limits)]
        memory = self._ring(*ring)
        free = iter(slots)
        size = part.size
        for _ in reader.batches(part, limits, lambda n: memory.tiles(next(free), n, size.height, size.width)):
            pass
        return None

    def _slide(self, slide: TileSlide) -> TileReader:
        found = self._open.pop(slide.where, None) or open_tile_reader(slide.where, name=slide.name, remote=self._remote)
        self._open[slide.where] = found  # the newest last
        while len(self._open) > 4:
            self._open.pop(next(iter(self._open))).close()
        return found

    def _ring(self, where: str, slots: int, slot_bytes: int) -> Ring:
        if where not in self._rings:
            self._rings[where] = Ring.open(where, slots, slot_bytes)
        return self._rings[where]


ReaderActor: Any = ray.remote(Reader)
