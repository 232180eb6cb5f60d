"""Tiles as a source of `ray.data`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray

from mhs_ray.actors.tile_readers import Reader, ReaderActor, TileSlide
from mhs_ray.slides.plan import TileRequest, coordinates
from mhs_ray.slides.remote import RemoteOptions
from mhs_ray.slides.tile_reader import Tissue
from mhs_ray.slides.units import split


def tile_dataset(
    slides: Sequence[TileSlide],
    request: TileRequest,
    *,
    tissue: bool | Tissue = False,
    readers: int = 2,
    part: int = 256,
    remote: RemoteOptions | None = None,
) -> Any:
    """Return a `ray.data.Dataset` of tiles: slide, level, x, y (level-0 pixels), mpp, tile (height, width, 3).

    Plans are made at once, pixels as the dataset is consumed, on `readers` actors, `part` tiles to a block.
    """
    import ray.data

    planner = ReaderActor.options(num_cpus=0).remote(remote)
    try:
        plans = ray.get([planner.plan.remote(s, request, tissue) for s in slides])
    finally:
        ray.kill(planner)
    parts = [
        (slide, plan.take(indices)) for slide, plan in zip(slides, plans, strict=True) for indices in split(plan, part)
    ]
    shared = ray.put(parts)
    return ray.data.range(len(parts), override_num_blocks=max(1, len(parts))).map_batches(
        _PartReader, batch_size=1, concurrency=readers, num_cpus=1, fn_constructor_args=(shared, remote)
    )


class _PartReader:
    def __init__(self, parts: Any, remote: RemoteOptions | None) -> None:
        self._parts = parts if isinstance(parts, list) else ray.get(parts)
        self._reader = Reader(remote)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number in batch["id"]:
            slide, plan = self._parts[int(number)]
            pixels = self._reader.read(slide, plan, len(plan), None, ())
            assert pixels is not None
            rows = coordinates(plan, np.arange(len(plan)))
            columns = {name: np.asarray(rows[name].to_pylist()) for name in rows.schema.names}
            yield {**columns, "tile": np.concatenate(pixels)}
