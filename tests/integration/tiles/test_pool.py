"""Reader actors give what one thread gives, whatever happens to them."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from mhs_ray.actors import tiles
from mhs_ray.actors.tile_dataset import tile_dataset
from mhs_ray.actors.tile_readers import Reader, TileSlide
from mhs_ray.actors.tiles import PoolBatch, PoolOptions, TilePool
from mhs_ray.domain.errors import MhsError, SlideError
from mhs_ray.slides.bands import BatchLimits
from mhs_ray.slides.plan import TileRequest
from mhs_ray.slides.tile_reader import open_tile_reader

pytestmark = pytest.mark.usefixtures("cluster")
SMALL = PoolOptions(readers=2, memory_bytes=24 << 20, batch=8)

Tiles = dict[tuple[str, int, int], NDArray[np.uint8]]


def alone(paths: list[Path], request: TileRequest, *, tissue: bool = False) -> Tiles:
    found: Tiles = {}
    for path in paths:
        with open_tile_reader(path) as reader:
            plan = reader.plan(request, tissue=tissue)
            for batch in reader.batches(plan, BatchLimits(8, 1)):
                for index, pixels in zip(batch.indices, batch.pixels, strict=True):
                    found[path.name, int(plan.x[index]), int(plan.y[index])] = pixels
    return found


def together(pool: TilePool) -> Tiles:
    found: Tiles = {}
    for batch in pool.batches():
        rows = batch.record_batch()
        places = zip(rows["slide"].to_pylist(), rows["x"].to_pylist(), rows["y"].to_pylist(), strict=True)
        for place, pixels in zip(places, batch.pixels, strict=True):
            assert place not in found
            found[place] = pixels.copy()
    return found


def same(one: Tiles, other: Tiles) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def sources(paths: list[Path]) -> list[TileSlide]:
    return [TileSlide(str(p)) for p in paths]


@pytest.mark.parametrize("request_", [TileRequest(256), TileRequest(224, stride=150), TileRequest(128, mpp=0.5)])
def test_two_slides_through_two_readers_are_the_same_tiles(slides: list[Path], request_: TileRequest) -> None:
    with TilePool(sources(slides), request_, SMALL, tissue=True) as pool:
        assert same(together(pool), alone(slides, request_, tissue=True))
        assert pool.done == pool.planned == sum(len(p) for p in pool.plans.values())


def test_in_order_means_slide_by_slide_and_in_the_plans_order(slides: list[Path]) -> None:
    options = PoolOptions(readers=2, memory_bytes=24 << 20, batch=8, ordered=True)
    with TilePool(sources(slides), TileRequest(256), options) as pool:
        seen = [(b.slide, int(i)) for b in pool.batches() for i in b.indices]
    assert seen == [(slide, i) for slide in (0, 1) for i in range(48)]


def test_batches_stay_whole_however_large_their_tiles_are(slides: list[Path]) -> None:
    request = TileRequest(2048, stride=512)  # 12 tiles of 12 MiB: more than a reader has under way by itself
    options = PoolOptions(readers=1, memory_bytes=500 << 20, batch=12)
    with TilePool(sources(slides[:1]), request, options) as pool:
        sizes = []
        for batch in pool.batches():
            sizes.append(len(batch))
            found = batch.pixels[:, ::97, ::89].copy()
    assert sizes == [12]
    with open_tile_reader(slides[0]) as reader:
        expected = np.concatenate(
            [b.pixels[:, ::97, ::89] for b in reader.batches(reader.plan(request), BatchLimits(4))]
        )
    order = np.argsort(batch.indices)
    assert np.array_equal(found[order], expected)


def test_a_reader_that_dies_costs_nothing_but_time(slides: list[Path]) -> None:
    with TilePool(sources(slides), TileRequest(224, stride=100), SMALL) as pool:
        victim = pool._readers[0].actor
        killed = False
        found: Tiles = {}
        for batch in pool.batches():
            for index, pixels in zip(batch.indices, batch.pixels, strict=True):
                place = (batch.plan.slide, int(batch.plan.x[index]), int(batch.plan.y[index]))
                assert place not in found
                found[place] = pixels.copy()
            if not killed:
                ray.kill(victim)
                killed = True
    assert same(found, alone(slides, TileRequest(224, stride=100)))


def test_a_bad_slide_is_told_and_the_others_are_read(slides: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_bytes(slides[0].read_bytes()[:-3000])
    told: list[tuple[str, MhsError]] = []
    options = PoolOptions(readers=2, memory_bytes=24 << 20, batch=8, bad_slide=lambda n, e: told.append((n, e)))
    with TilePool(sources([bad, slides[1]]), TileRequest(256), options) as pool:
        assert same(together(pool), alone([slides[1]], TileRequest(256)))
    assert len(told) == 1
    assert isinstance(told[0][1], SlideError)
    assert told[0][1].reason == "truncated"
    with TilePool(sources([bad]), TileRequest(256), SMALL) as pool, pytest.raises(SlideError, match="cut off"):
        list(pool.batches())


class Fragile(Reader):
    """Dies of a slide by this name, as of a fault in a C library: while it is opened, or while its tiles are read."""

    def plan(self, slide: TileSlide, request: TileRequest, tissue: Any) -> Any:
        if slide.name == "kills the planner":
            os._exit(1)
        return super().plan(slide, request, tissue)

    def read(self, slide: TileSlide, *rest: Any) -> Any:
        if slide.name == "kills the reader":
            os._exit(1)
        return super().read(slide, *rest)


@pytest.mark.parametrize("name", ["kills the planner", "kills the reader"])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_slide_that_kills_its_readers_is_left_out_and_the_others_are_read(
    slides: list[Path], monkeypatch: pytest.MonkeyPatch, name: str, ordered: bool
) -> None:
    monkeypatch.setattr(tiles, "ReaderActor", ray.remote(Fragile))
    told: list[tuple[str, MhsError]] = []
    options = replace(SMALL, bad_slide=lambda n, e: told.append((n, e)), ordered=ordered)
    with TilePool([TileSlide(str(slides[0]), name), TileSlide(str(slides[1]))], TileRequest(256), options) as pool:
        assert same(together(pool), alone([slides[1]], TileRequest(256)))
    [(who, error)] = told
    assert who == name
    assert "killed 3 readers" in str(error)
    with (
        TilePool([TileSlide(str(slides[0]), name)], TileRequest(256), SMALL) as pool,
        pytest.raises(SlideError, match="hostile"),
    ):
        list(pool.batches())


def test_what_may_be_kept_is_said_and_more_is_an_error(slides: list[Path]) -> None:
    def keeping(pool: TilePool, most: int) -> int:
        kept: list[PoolBatch] = []
        for batch in pool.batches():
            batch.keep()
            kept.append(batch)
            if len(kept) > most:
                kept.pop(0).release()
        return pool.done

    little = replace(SMALL, memory_bytes=8 << 20)
    with TilePool(sources(slides), TileRequest(256), little) as pool:
        assert keeping(pool, pool.may_keep) == pool.planned == 96
    with (
        TilePool(sources(slides), TileRequest(256), little) as pool,
        pytest.raises(SlideError, match=f"more than {pool.may_keep} batches are kept"),
    ):
        keeping(pool, 96)


def test_more_readers_than_cores_hold_nothing_up(slides: list[Path]) -> None:
    options = replace(SMALL, readers=6)
    with TilePool(sources(slides), TileRequest(256), options) as pool:
        assert same(together(pool), alone(slides, TileRequest(256)))


def test_what_no_slide_can_give_is_said_before_anything_starts(slides: list[Path]) -> None:
    with pytest.raises(SlideError, match="1 to 8192"):
        TilePool(sources(slides), TileRequest(0), SMALL)


def test_leaving_early_frees_the_actors_and_the_memory(slides: list[Path]) -> None:
    def shared() -> int:
        maps = Path("/proc/self/maps").read_text()
        return maps.count("memfd:mhs-tiles")

    before = shared()
    with TilePool(sources(slides), TileRequest(256), SMALL) as pool:
        actors = [r.actor for r in pool._readers]
        batch = next(pool.batches())
        assert shared() == before + 1
        batch.release()
    del batch
    gc.collect()
    assert shared() == before
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.node.remote(), timeout=20)


def test_readers_elsewhere_answer_through_the_object_store(slides: list[Path]) -> None:
    with TilePool(sources(slides), TileRequest(256), SMALL) as pool:
        for reader in pool._readers:
            reader.near = False
        assert same(together(pool), alone(slides, TileRequest(256)))


def test_too_little_memory_is_said_before_anything_starts(slides: list[Path]) -> None:
    with pytest.raises(SlideError, match="MiB are allowed"):
        TilePool(sources(slides), TileRequest(2048), SMALL)


def test_tiles_as_a_dataset(slides: list[Path]) -> None:
    dataset = tile_dataset(sources(slides[:1]), TileRequest(128, mpp=0.5), tissue=True, readers=1, part=8)
    expected = alone(slides[:1], TileRequest(128, mpp=0.5), tissue=True)
    found: Tiles = {}
    for row in dataset.iter_rows():
        found[row["slide"], row["x"], row["y"]] = row["tile"]
    assert same(found, expected)
