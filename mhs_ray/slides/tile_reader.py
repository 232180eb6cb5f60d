"""Tiles of a slide, wherever it is: ask for a plan first, then for its pixels.

::

    with open_tile_reader("https://…") as slide:
        plan = slide.plan(TileRequest(size=224, mpp=0.5), tissue=True)   # coordinates: plan.table()
        for batch in slide.batches(plan):                                # pixels: batch.pixels, batch.record_batch()
            ...
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import numpy as np

from mhs_ray.domain.errors import SlideError, SlideFetchError
from mhs_ray.slides.bands import Allocate, BatchLimits, TileBatch, read_batches
from mhs_ray.slides.fetch import fetch
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.layout_facts import facts_of
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.plan import HasTissue, TilePlan, TileRequest, plan_tiles
from mhs_ray.slides.reader import RGB, SlideFacts, SlideReader, check_request
from mhs_ray.slides.remote import NoRangesError, RemoteFile, RemoteOptions
from mhs_ray.slides.tiff import TiffLayout, parse_layout
from mhs_ray.slides.tiff_check import check_layout
from mhs_ray.slides.tiles import FastTiles, fast_pages, open_tiles
from mhs_ray.slides.tissue import MaskMethod, TissueMap, TissueParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tissue:
    """How tissue is found: the platform's method with `params`, or one's own `method` on the thumbnail."""

    params: TissueParams = field(default_factory=TissueParams)
    method: MaskMethod | None = None


def open_tile_reader(where: str | Path, *, name: str | None = None, remote: RemoteOptions | None = None) -> TileReader:
    """Open a slide by path, or by http(s) URL: then only the bytes that are needed are fetched.

    A remote slide that cannot be read by ranges (a storage that has none, DICOM, NDPI …) is fetched whole, once, to a
    temporary file. name: what plans and messages call it. Raises SlideError and SlideFetchError.
    """
    text = str(where)
    if not text.startswith(("http://", "https://")):
        path = Path(text.removeprefix("file://"))
        return _open_local(path, name or path.name)
    return _open_remote(text, name, remote or RemoteOptions())


class TileReader:
    """An open slide. Safe to use from several threads. `slide` reads regions, thumbnails and associated images."""

    def __init__(self, name: str, slide: SlideReader, tiles: FastTiles, owned: ExitStack) -> None:
        self.name, self.slide, self.tiles = name, slide, tiles
        self._owned = owned
        self._tissue: tuple[Tissue, TissueMap] | None = None

    @property
    def facts(self) -> SlideFacts:
        """What is known of the slide."""
        return self.slide.facts()

    def plan(self, request: TileRequest, *, tissue: bool | Tissue = False, wanted: HasTissue | None = None) -> TilePlan:
        """Return the coordinates of the tiles that `request` means; see `plan_tiles`. tissue: leave out the glass."""
        plan = plan_tiles(self.name, self.facts, request)
        if tissue is not False:
            found = self.tissue(Tissue() if tissue is True else tissue)
            plan = plan.take(np.flatnonzero(found.have_tissue(plan.x, plan.y, plan.box)))
        return plan if wanted is None else plan.where(wanted)

    def tissue(self, how: Tissue | None = None) -> TissueMap:
        """Return where the tissue is; the last answer is kept."""
        how = how or Tissue()
        if self._tissue is None or self._tissue[0] != how:
            self._tissue = (how, TissueMap(self.slide, params=how.params, method=how.method))
        return self._tissue[1]

    def batches(
        self, plan: TilePlan, limits: BatchLimits | None = None, allocate: Allocate | None = None
    ) -> Iterator[TileBatch]:
        """Yield the plan's tiles; see `read_batches`."""
        return read_batches(self.tiles, plan, limits, allocate)

    def close(self) -> None:
        """Give back files, connections and memory."""
        self._owned.close()

    def __enter__(self) -> TileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _last_part(url: str) -> str:
    return urlsplit(url).path.rsplit("/", 1)[-1] or "slide"


def _open_local(path: Path, name: str, owned: ExitStack | None = None) -> TileReader:
    stack = owned or ExitStack()
    try:
        slide = open_slide(path)
        stack.callback(slide.close)
        tiles = open_tiles(path, slide)
        stack.callback(tiles.close)
        return TileReader(name, slide, tiles, stack)
    except BaseException:
        stack.close()
        raise


def _open_remote(url: str, name: str | None, options: RemoteOptions) -> TileReader:
    stack = ExitStack()
    try:
        try:
            source = RemoteFile(url, options)
        except NoRangesError as error:
            log.info("%s", error)
            return _open_whole(url, name, options)
        stack.callback(source.close)
        shown = name or _last_part(url)
        found = _layout(source)
        if found is None:
            stack.close()
            return _open_whole(url, name, options)
        layout, facts = found
        whole = _Whole(url, options, facts)
        stack.callback(whole.close)
        tiles = FastTiles(shown, facts, whole, source, fast_pages(layout, facts))
        return TileReader(shown, _RangedSlide(shown, tiles, whole, layout, source), tiles, stack)
    except BaseException:
        stack.close()
        raise


def _layout(source: RemoteFile) -> tuple[TiffLayout, SlideFacts] | None:
    """Return the layout and facts of a slide whose every level can be read by ranges, None for any other."""
    try:
        layout = parse_layout(source)
    except SlideFetchError:
        raise
    except SlideError as error:
        if error.reason == "not-a-slide":
            return None
        raise
    check_layout(source.name, layout)
    facts = facts_of(layout)
    if facts is None or len(fast_pages(layout, facts)) < len(facts.levels):
        return None
    return layout, facts


def _open_whole(url: str, name: str | None, options: RemoteOptions) -> TileReader:
    stack = ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mhs-slide-")))
    path = folder / "slide"
    try:
        fetch(url, path, limits=options.limits, policy=options.policy, tls=options.tls)
    except BaseException:
        stack.close()
        raise
    return _open_local(path, name or _last_part(url), stack)


class _Whole:
    """A remote slide's reader that fetches the whole file when it is first asked: only few slides ever need it."""

    def __init__(self, url: str, options: RemoteOptions, facts: SlideFacts) -> None:
        self._url, self._options, self._facts = url, options, facts
        self._lock = threading.Lock()
        self._reader: TileReader | None = None

    def facts(self) -> SlideFacts:
        return self._facts

    def read_region(self, origin: Level0Point, size: PixelSize, *, level: int) -> RGB:
        return self._open().read_region(origin, size, level=level)

    def associated(self, name: str) -> RGB:
        return self._open().associated(name)

    def icc_profile(self) -> bytes | None:
        return self._open().icc_profile()

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def __enter__(self) -> _Whole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> SlideReader:
        with self._lock:
            if self._reader is None:
                log.info("a tile needs OpenSlide, so the whole slide is fetched")
                self._reader = _open_whole(self._url, None, self._options)
            return self._reader.slide


class _RangedSlide:
    """See SlideReader: regions put together from stored tiles."""

    def __init__(self, name: str, tiles: FastTiles, whole: _Whole, layout: TiffLayout, source: RemoteFile) -> None:
        self._name, self._tiles, self._whole = name, tiles, whole
        self._layout, self._source = layout, source

    def facts(self) -> SlideFacts:
        return self._tiles.facts

    def read_region(self, origin: Level0Point, size: PixelSize, *, level: int) -> RGB:
        facts = self._tiles.facts
        check_request(self._name, facts, size, level)
        downsample = facts.levels[level].downsample
        out = np.empty((size.height, size.width, 3), np.uint8)
        out[:] = facts.background
        left, top = round(origin.x / downsample), round(origin.y / downsample)
        grid = self._tiles.grid(level)
        wide, high = grid.size.width, grid.size.height
        columns = range(max(0, left // wide), min(grid.columns, (left + size.width - 1) // wide + 1))
        rows = range(max(0, top // high), min(grid.rows, (top + size.height - 1) // high + 1))
        self._tiles.prefetch(level, [(c, r) for r in rows for c in columns])
        tile = np.empty((high, wide, 3), np.uint8)
        for row in rows:
            y0, y1 = max(top, row * high), min(top + size.height, (row + 1) * high)
            for column in columns:
                self._tiles.decode(level, grid, column, row, tile)
                x0, x1 = max(left, column * wide), min(left + size.width, (column + 1) * wide)
                out[y0 - top : y1 - top, x0 - left : x1 - left] = tile[
                    y0 - row * high : y1 - row * high, x0 - column * wide : x1 - column * wide
                ]
        return out

    def associated(self, name: str) -> RGB:
        return self._whole.associated(name)

    def icc_profile(self) -> bytes | None:
        icc = self._layout.pages[0].icc
        return None if icc is None else self._source.read(*icc)

    def close(self) -> None:
        """The reader that made this closes all of it."""

    def __enter__(self) -> _RangedSlide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
