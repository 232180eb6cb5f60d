"""Slides to look at: tiles and thumbnails, from slides that stay open a while."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import BlobError, BlobNotFoundError, ConflictError, SlideError
from mhs_ray.domain.models import Principal, Scan, ScanStatus
from mhs_ray.ports import BlobStore
from mhs_ray.services.scans import ScanService
from mhs_ray.slides.cache import SlideCache, SlideSource
from mhs_ray.slides.deepzoom import encode, read_tile
from mhs_ray.slides.geometry import PixelSize
from mhs_ray.slides.reader import SlideFacts
from mhs_ray.slides.thumbnail import thumbnail
from mhs_ray.slides.tile_reader import TileReader, open_tile_reader

log = logging.getLogger(__name__)

_MAX_OPEN: Final = 16
_THUMBNAIL: Final = PixelSize(240, 160)
_MAX_THUMBNAIL_SOURCE: Final = 1 << 26


class _Open:
    """A slide that is open, or about to be. users: how many read from it now; closed once dropped and unused."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while it is opened, which may mean a download
        self.reader: TileReader | None = None
        self.stack = ExitStack()
        self.users = 0
        self.dropped = False


class SlidePool:
    """Keeps the slides that were read last open, at most `max_open` of them beside those in use."""

    def __init__(self, max_open: int = _MAX_OPEN) -> None:
        self._max = max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()

    @contextmanager
    def get(self, key: int, open_it: Callable[[ExitStack], TileReader]) -> Iterator[TileReader]:
        """Yield the slide of `key`, opened by `open_it` if it is not; what that puts on the stack ends with it."""
        with self._lock:
            entry = self._open.setdefault(key, _Open())
            self._open.move_to_end(key)
            entry.users += 1
        try:
            with entry.lock:
                if entry.reader is None:
                    entry.reader = open_it(entry.stack)
            yield entry.reader
        except BaseException:
            if entry.reader is None:  # it could not be opened: the next one tries anew
                self._drop(key, entry)
            raise
        finally:
            self._leave(entry)

    def close(self) -> None:
        """Close all that nobody reads from; the others close when they are left."""
        with self._lock:
            entries = list(self._open.items())
        for key, entry in entries:
            self._drop(key, entry)

    def _leave(self, entry: _Open) -> None:
        with self._lock:
            entry.users -= 1
            over = [k for k, e in self._open.items() if not e.users][: max(0, len(self._open) - self._max)]
            dropped = [self._open.pop(k) for k in over]
            if entry.dropped and not entry.users:
                dropped.append(entry)
        for old in dropped:
            old.stack.close()

    def _drop(self, key: int, entry: _Open) -> None:
        with self._lock:
            if self._open.get(key) is entry:
                del self._open[key]
            entry.dropped = True
            close = not entry.users
        if close:
            entry.stack.close()


class SlideViews:
    """make_cache: opens the node's slide cache, for slides whose bytes are not on this machine."""

    def __init__(self, scans: ScanService, blobs: BlobStore, make_cache: Callable[[], SlideCache]) -> None:
        self._scans, self._blobs, self._make_cache = scans, blobs, make_cache
        self._pool = SlidePool()
        self._cache: SlideCache | None = None
        self._lock = threading.Lock()

    def facts(self, who: Principal, scan_id: int) -> SlideFacts:
        """Return what is known of the opened slide; the first call may fetch it. Raises SlideError, ConflictError."""
        scan = self._usable(who, scan_id)
        with self._pool.get(scan.id, partial(self._open, scan)) as reader:
            return reader.facts

    def tile(self, who: Principal, scan_id: int, level: int, column: int, row: int) -> bytes:
        """Return a deep-zoom tile as JPEG. Raises SlideError for one that is not there."""
        scan = self._usable(who, scan_id)
        with self._pool.get(scan.id, partial(self._open, scan)) as reader:
            return encode(read_tile(reader.slide, level, column, row, reader.tiles))

    def thumbnail(self, who: Principal, scan_id: int) -> bytes | None:
        """Return a small JPEG, made once and kept; None where that would mean to fetch the slide first."""
        scan = self._usable(who, scan_id)
        key = f"thumbnails/{scan.company_id}/{scan.id}.jpeg"
        try:
            with self._blobs.open(key) as stored:
                return stored.read()
        except BlobNotFoundError:
            pass
        if self._scans.local_copy(scan.id) is None:
            return None
        with self._pool.get(scan.id, partial(self._open, scan)) as reader:
            data = encode(thumbnail(reader.slide, _THUMBNAIL, max_source_pixels=_MAX_THUMBNAIL_SOURCE))
        try:
            self._blobs.put(key, data)
        except BlobError as error:  # a full store only costs the next one a moment
            log.warning("the thumbnail of scan %s could not be kept: %s", scan.id, error)
        return data

    def close(self) -> None:
        """Close what is open."""
        self._pool.close()

    def _usable(self, who: Principal, scan_id: int) -> Scan:
        scan = self._scans.scans.get(who.company_id, scan_id)
        if scan.status is not ScanStatus.READY:
            raise ConflictError(f"scan {scan_id} cannot be shown: it is {scan.status}")
        return scan

    def _open(self, scan: Scan, stack: ExitStack) -> TileReader:
        path = self._scans.local_copy(scan.id)
        if path is None:
            path = self._fetched(scan, stack)
        elif not path.exists():
            raise SlideError("not-found", f"the file of scan {scan.id} ({scan.name}) is not there any more")
        return stack.enter_context(open_tile_reader(path))

    def _fetched(self, scan: Scan, stack: ExitStack) -> Path:
        with self._lock:
            self._cache = self._cache or self._make_cache()
        urls, identity = self._scans.sources(scan.id)
        return stack.enter_context(self._cache.get(SlideSource(tuple(urls), identity))).path
