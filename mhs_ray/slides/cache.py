"""One copy of each slide per node, shared by all processes on it, bounded, and safe to kill at any moment.

::

    ROOT/entries/KEY.GEN/   slide | series/, meta.json, lease     complete, checked; appears by one rename
    ROOT/locks/KEY          one download of a slide at a time     (flock, exclusive)
    ROOT/locks/.space       making room                           (flock, exclusive)
    ROOT/tmp/NAME/          a download in progress; ``owner`` is locked while its process lives; ``ahead``: no job waits

A lease is a shared flock on the entry's ``lease`` file, so it ends with its process however that ends. Eviction takes
the exclusive one without waiting: what is in use is never evicted. Locks are per open file, so they hold between
threads as well. The root must be on a local file system.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mhs_ray.domain.errors import SlideError, SlideFetchError
from mhs_ray.domain.redact import redact_url
from mhs_ray.slides.archive import ArchiveLimits, unpack_series_isolated, unpacked_bytes_isolated
from mhs_ray.slides.cancelling import Cancelled, never
from mhs_ray.slides.check import CheckLimits, check_slide_isolated
from mhs_ray.slides.fetch import FetchLimits, FetchResult, OnProgress, fetch, revalidate
from mhs_ray.slides.flock import locked, try_lock
from mhs_ray.slides.presigned import stable_identity
from mhs_ray.slides.reader import SlideFacts
from mhs_ray.slides.sniff import Kind, sniff
from mhs_ray.slides.url_guard import UrlPolicy

log = logging.getLogger(__name__)

_AHEAD_SHARE: Final = 4  # what is fetched ahead may take this part of the cache: what runs must find room
_META: Final = "meta.json"
_LEASE: Final = "lease"
_AHEAD: Final = "ahead"


@dataclass(frozen=True, slots=True)
class SlideSource:
    """Where a slide's bytes are. urls: one, or every file of a DICOM series in order.

    identity: a name that changes whenever the bytes do and that the caller was entitled to use (a blob's key and
    ETag). Without it the storage is asked at every use whether the URL is still good and the ETag still the same.
    """

    urls: tuple[str, ...]
    identity: str | None = None

    @classmethod
    def of_path(cls, path: Path) -> SlideSource:
        """Return the source of a file, or of a folder with the files of a DICOM series. path: absolute."""
        files = sorted(filter(_is_dicom, path.rglob("*"))) if path.is_dir() else ()
        return cls(tuple(file.as_uri() for file in files or (path,)))

    @property
    def key(self) -> str:
        """Name of the cache entry; presigned URLs of the same object share it."""
        what = self.identity or "\n".join(stable_identity(u) for u in self.urls)
        return hashlib.sha256(f"{'identity' if self.identity else 'url'}\n{what}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class CachedSlide:
    """A slide on this node. path: a file, or a folder with a DICOM series' files; read only, good while leased.

    size: bytes on disk. sha256, etag: of each file that was fetched, in the order of the source's URLs.
    """

    path: Path
    facts: SlideFacts
    size: int
    sha256: tuple[str, ...]
    etags: tuple[str | None, ...]
    was_cached: bool


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """max_bytes: of all slides on the node. max_age_s: since last use. min_free_bytes: left to others on the disk."""

    max_bytes: int = 50 << 30
    max_age_s: float = 14 * 86400.0
    min_free_bytes: int = 1 << 30


class SlideCache:
    """The node's slides. Any number of processes may hold one on the same root."""

    def __init__(
        self,
        root: Path,
        *,
        limits: CacheLimits | None = None,
        fetch_limits: FetchLimits | None = None,
        check_limits: CheckLimits | None = None,
        policy: UrlPolicy | None = None,
    ) -> None:
        self._root = root
        self._limits = limits or CacheLimits()
        self._fetch_limits, self._check_limits = fetch_limits or FetchLimits(), check_limits or CheckLimits()
        self._policy = policy or UrlPolicy()
        self._entries, self._locks, self._tmp = root / "entries", root / "locks", root / "tmp"
        for folder in (self._entries, self._locks, self._tmp):
            folder.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
        self.sweep()

    @contextmanager
    def get(
        self,
        source: SlideSource,
        *,
        on_progress: OnProgress | None = None,
        cancelled: Cancelled = never,
    ) -> Iterator[CachedSlide]:
        """Yield the slide, fetched and checked if it was not there; it stays until the block is left.

        on_progress: see `fetch`; of a series, counts each file from 0. cancelled: asked while waiting for another
        process's download, and during one's own. Raises SlideError and SlideFetchError; a slide that failed
        its check is not kept.
        """
        with self._leased(source, on_progress, cancelled) as slide:
            yield slide

    def fetch_ahead(self, source: SlideSource) -> None:
        """Have the slide here for a job that comes soon; a slide of more than a quarter of the cache is refused.

        Whoever needs the slide meanwhile waits for this download rather than begin another. Raises as `get` does.
        """
        with self._leased(source, None, never, ahead=True):
            pass

    def keys(self) -> frozenset[str]:
        """Return the keys of the slides that are here (`SlideSource.key`)."""
        return frozenset(entry.name.partition(".")[0] for entry in self._entries.iterdir())

    def sweep(self) -> None:
        """Remove what dead processes left, broken entries, and entries unused for too long. Runs at the start."""
        with locked(self._locks / ".space", never):
            for folder in self._tmp.iterdir():
                with try_lock(folder / "owner") as mine:
                    if mine:
                        shutil.rmtree(folder, ignore_errors=True)
        for entry in self._entries.iterdir():
            if self._meta(entry) is None or time.time() - _used_at(entry) > self._limits.max_age_s:
                self._evict(entry)

    def used_bytes(self) -> int:
        """Return the bytes of all entries and of the downloads in progress."""
        sizes = [int((self._meta(e) or {}).get("size", 0)) for e in self._entries.iterdir()]
        return sum(sizes) + self._reserved(None)

    @contextmanager
    def _leased(
        self,
        source: SlideSource,
        on_progress: OnProgress | None,
        cancelled: Cancelled,
        *,
        ahead: bool = False,
    ) -> Iterator[CachedSlide]:
        made_here: str | None = None
        confirmed: str | None = None  # what the storage vouched for during this call
        while True:
            for entry in sorted(self._entries.glob(f"{source.key}.*"), key=lambda e: e.name != confirmed):
                with try_lock(entry / _LEASE, shared=True, create=False) as leased:
                    meta = self._meta(entry) if leased else None
                    if meta is None or (entry.name != confirmed and not self._is_good(source, entry, meta, cancelled)):
                        continue
                    os.utime(entry / _META)
                    yield self._cached(entry, meta, entry.name != made_here)
                    return
            with locked(self._locks / source.key, cancelled):
                made = self._current(source, cancelled)
                if made is None:
                    made = self._download(source, on_progress, cancelled, ahead)
                    made_here = made.name
                confirmed = made.name

    def _current(self, source: SlideSource, cancelled: Cancelled) -> Path | None:
        """An entry that another process made while we waited for the lock; it is as fresh as our question."""
        for entry in self._entries.glob(f"{source.key}.*"):
            meta = self._meta(entry)
            if meta is not None and (entry / _LEASE).exists() and self._is_good(source, entry, meta, cancelled):
                return entry
        return None

    def _is_good(self, source: SlideSource, entry: Path, meta: dict[str, Any], cancelled: Cancelled) -> bool:
        """Say whether the entry holds what was fetched, and the storage lets this source read it and has no newer."""
        if not self._survived(entry, meta):
            return False
        if source.identity is not None:
            return True
        if len(meta["etags"]) != len(source.urls):
            return False
        return all(
            revalidate(url, etag, limits=self._fetch_limits, policy=self._policy, cancelled=cancelled)
            for url, etag in zip(source.urls, meta["etags"], strict=True)
        )

    def _download(self, source: SlideSource, on_progress: OnProgress | None, cancelled: Cancelled, ahead: bool) -> Path:
        name = f"{source.key}.{secrets.token_hex(6)}"
        work = self._tmp / name
        with ExitStack() as owned:
            with locked(self._locks / ".space", never):  # so that no sweep meets a folder without its owner
                work.mkdir()
                owned.callback(shutil.rmtree, work, ignore_errors=True)
                owned.enter_context(try_lock(work / "owner"))
                if ahead:
                    (work / _AHEAD).touch()
            try:
                return self._fill(source, work, partial(self._fetch, work, on_progress, cancelled))
            except OSError as error:
                raise SlideFetchError(
                    "no-space", f"the slide cannot be kept on this node: {error.strerror or error}", True
                ) from None

    def _fill(self, source: SlideSource, work: Path, bring: Callable[[str, Path, int], FetchResult]) -> Path:
        content = work / "content"
        content.mkdir()
        slide = content / "slide"
        results: list[FetchResult] = []
        if len(source.urls) == 1:
            results.append(bring(source.urls[0], slide, 0))
            if sniff(slide) is Kind.ZIP:
                slide = self._unpack(slide, work, results[0].size)
        else:
            slide = content / "series"
            slide.mkdir()
            for number, url in enumerate(source.urls):
                before = sum(r.size for r in results)
                results.append(bring(url, slide / f"{number:04d}.dcm", before))
        facts = check_slide_isolated(slide, self._check_limits)
        meta = {
            "path": slide.name,
            "facts": facts.to_json(),
            "size": _size(slide),
            "sha256": [r.sha256 for r in results],
            "etags": [r.etag for r in results],
            "source": [redact_url(u) for u in source.urls],
            "boot": _boot_id(),
        }
        (content / _META).write_text(json.dumps(meta))
        (content / _LEASE).touch()
        entry = self._entries / work.name
        content.rename(entry)
        for older in self._entries.glob(f"{source.key}.*"):
            if older != entry:
                self._evict(older)
        return entry

    def _fetch(
        self, work: Path, on_progress: OnProgress | None, cancelled: Cancelled, url: str, dest: Path, before: int
    ) -> FetchResult:
        reserved = [-1]

        def progress(done: int, total: int | None) -> None:
            need = total if total is not None else done
            if need > reserved[0]:
                self._reserve(work, before, need if total is not None else need + (64 << 20))
                reserved[0] = need if total is not None else need + (64 << 20)
            if on_progress is not None:
                on_progress(done, total)

        limits, policy = self._fetch_limits, self._policy
        return fetch(url, dest, limits=limits, policy=policy, on_progress=progress, cancelled=cancelled)

    def _unpack(self, archive: Path, work: Path, packed: int) -> Path:
        room = unpacked_bytes_isolated(archive)
        self._reserve(work, packed, room)
        series = archive.parent / "series"
        unpack_series_isolated(archive, series, ArchiveLimits(max_bytes=room))
        archive.unlink()
        return series

    def _reserve(self, work: Path, have: int, more: int) -> None:
        """Make room for `have` + `more` bytes in all of this download, or raise SlideFetchError."""
        need = have + more
        if (work / _AHEAD).exists() and need > self._limits.max_bytes // _AHEAD_SHARE:
            raise SlideFetchError("too-large", f"the slide has {need:,} bytes, too many to be fetched ahead")
        if need > self._limits.max_bytes:
            raise SlideFetchError(
                "too-large", f"the slide has {need:,} bytes; this node's slide cache holds {self._limits.max_bytes:,}"
            )
        with locked(self._locks / ".space", never):
            entries = sorted(self._entries.iterdir(), key=_used_at)
            sizes = {e: int((self._meta(e) or {}).get("size", 0)) for e in entries}
            used = sum(sizes.values()) + self._reserved(work)
            for entry in entries:
                free = shutil.disk_usage(self._root).free - more
                if used + need <= self._limits.max_bytes and free >= self._limits.min_free_bytes:
                    break
                if self._evict(entry):
                    used -= sizes[entry]
            if used + need > self._limits.max_bytes:
                raise SlideFetchError(
                    "no-space", "this node's slide cache is full of slides in use; the job is tried again later", True
                )
            if shutil.disk_usage(self._root).free - more < self._limits.min_free_bytes:
                raise SlideFetchError("no-space", "this node's disk is too full for the slide", True)
            (work / "reserved").write_text(str(need))

    def _reserved(self, but: Path | None) -> int:
        total = 0
        for folder in self._tmp.iterdir():
            if folder != but:
                with suppress(OSError, ValueError):
                    total += int((folder / "reserved").read_text())
        return total

    def _evict(self, entry: Path) -> bool:
        """Remove `entry` unless somebody uses it. Renamed away first, so that nobody finds half of it."""
        with try_lock(entry / _LEASE) as mine:
            if not mine:
                return False
            gone = self._tmp / f"evicted.{secrets.token_hex(6)}"
            try:
                entry.rename(gone)
            except FileNotFoundError:
                return True
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _meta(self, entry: Path) -> dict[str, Any] | None:
        """Return the entry's record, None when the entry is not as it was recorded (its size tells; cheap)."""
        try:
            meta = json.loads((entry / _META).read_text())
            path = entry / meta["path"]
            if _size(path) != meta["size"]:
                return None
            SlideFacts.from_json(meta["facts"])
            if not {"sha256", "etags", "boot"} <= meta.keys():
                return None
        except (OSError, ValueError, KeyError, TypeError, SlideError):
            return None
        return dict(meta)

    def _survived(self, entry: Path, meta: dict[str, Any]) -> bool:
        """Compare an entry of an earlier boot once with what was fetched: it was never flushed on purpose."""
        if meta["boot"] == _boot_id():
            return True
        path = entry / meta["path"]
        try:
            if path.is_dir() or _sha256(path) != meta["sha256"][0]:
                return False
            fresh = entry / f"{_META}.{secrets.token_hex(4)}"
            fresh.write_text(json.dumps({**meta, "boot": _boot_id()}))
            fresh.rename(entry / _META)
        except OSError:
            return False
        return True

    def _cached(self, entry: Path, meta: dict[str, Any], was_cached: bool) -> CachedSlide:
        return CachedSlide(
            path=entry / meta["path"],
            facts=SlideFacts.from_json(meta["facts"]),
            size=int(meta["size"]),
            sha256=tuple(meta["sha256"]),
            etags=tuple(meta["etags"]),
            was_cached=was_cached,
        )


def _is_dicom(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0 and sniff(path) is Kind.DICOM


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.iterdir())
    return path.stat().st_size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _used_at(entry: Path) -> float:
    try:
        return (entry / _META).stat().st_mtime
    except OSError:
        return 0.0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
