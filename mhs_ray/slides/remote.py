"""A slide's bytes straight from its presigned URL, by Range requests through the node's block cache.

Blocks that lie side by side are asked for together, several requests at a time, and ahead of need (`prefetch`). Every
answer must be of the version that the first one had, whole, and of the range that was asked for.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
import ssl
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.domain.redact import redact_url
from mhs_ray.slides.blocks import BLOCK, BlockCache, BlockFile
from mhs_ray.slides.bytesource import Range, beyond
from mhs_ray.slides.fetch import FetchLimits, client, failure_to_fetch, first_bytes, send
from mhs_ray.slides.presigned import refusal, stable_identity
from mhs_ray.slides.url_guard import UrlPolicy

log = logging.getLogger(__name__)

_RUN: Final = 32  # blocks in one request, 2 MiB
_FIRST_RUN: Final = 4  # it doubles from here: all answers share the line, and the first tiles need the first one
_HOT: Final = 128  # blocks kept in memory: a tile is smaller than a block
_HEAD: Final = 4  # blocks of the first request: a file's first directory is often there
_TAIL: Final = 16  # blocks asked for meanwhile, of a large file: most of its other directories are there
_CONNECTIONS: Final = 8
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class NoRangesError(SlideFetchError):
    """The storage only gives whole objects."""


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How remote slides are read. blocks: None for a cache of this reader alone, removed with it."""

    policy: UrlPolicy = field(default_factory=UrlPolicy)
    limits: FetchLimits = field(default_factory=FetchLimits)
    blocks: BlockCache | None = None
    tls: ssl.SSLContext | None = None


class RemoteFile:
    """See ByteSource. Raises SlideFetchError: see `mhs_ray.slides.fetch.fetch`, and NoRangesError.

    requests, fetched_bytes: what was asked of the storage so far.
    """

    def __init__(self, url: str, options: RemoteOptions | None = None) -> None:
        self._options = options = options or RemoteOptions()
        self._url, self._shown = url, redact_url(url)
        options.policy.check_url(url)
        self.requests, self.fetched_bytes = 0, 0
        self._total: int | None = None
        self._version: str | None = None
        self._run = _FIRST_RUN
        self._lock = threading.RLock()  # a future that is done already calls back at once
        self._under_way: dict[int, Future[None]] = {}
        self._hot: OrderedDict[int, bytes] = OrderedDict()
        self._closed = threading.Event()
        self._http = client(options.policy, options.limits, options.tls, self._closed.is_set)
        self._own: Path | None = None
        self._blocks: BlockFile
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="ranges")  # starts no thread yet
        try:
            head = self._get(0, _HEAD * BLOCK)
            assert self._total is not None
            if not self._total:
                raise SlideFetchError("short-body", f"the slide at {self._shown} is empty")
            if self._total > options.limits.max_bytes:
                raise SlideFetchError("too-large", f"the slide at {self._shown} has {self._total:,} bytes")
            cache = options.blocks
            if cache is None:
                self._own = Path(tempfile.mkdtemp(prefix="mhs-blocks-"))
                cache = BlockCache(self._own, max_bytes=options.limits.max_bytes)
            # Without a version nothing says that two readings are of the same bytes.
            version = self._version or secrets.token_hex(16)
            key = hashlib.sha256(f"{stable_identity(url)}\n{version}\n{self._total}".encode()).hexdigest()[:40]
            self._blocks = cache.open(key, self._total)
            for number in range(min(_HEAD, self._blocks.count)):
                if not self._blocks.has(number):
                    self._blocks.write(number, head[number * BLOCK : (number + 1) * BLOCK])
            tail = min(_TAIL, self._blocks.count // 32)
            self._begin(list(range(self._blocks.count - tail, self._blocks.count)))
            self._run = _FIRST_RUN
        except BaseException:
            self._http.close()
            self._remove_own()
            raise

    @property
    def name(self) -> str:
        """The URL without its query."""
        return self._shown

    @property
    def size(self) -> int:
        """See ByteSource."""
        assert self._total is not None
        return self._total

    @property
    def is_far(self) -> bool:
        """See ByteSource."""
        return True

    def read(self, offset: int, length: int) -> bytes:
        """See ByteSource."""
        if offset < 0 or offset + length > self.size:
            raise beyond(self._shown, offset, length, self.size)
        if not length:
            return b""
        numbers = range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
        parts = [self._block(n, numbers) for n in numbers]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        start = offset - numbers[0] * BLOCK
        return data[start : start + length]

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """See ByteSource. What goes wrong is told by the `read` that needs the bytes."""
        numbers: set[int] = set()
        for offset, length in ranges:
            if length and 0 <= offset <= offset + length <= self.size:
                numbers.update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
        self._begin(sorted(numbers))

    def close(self) -> None:
        """See ByteSource."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._http.close()
        self._blocks.close()
        self._remove_own()

    def _block(self, number: int, needed: range) -> bytes:
        for _ in range(4):
            with self._lock:
                hot = self._hot.get(number)
                if hot is not None:
                    self._hot.move_to_end(number)
                    return hot
                under_way = self._under_way.get(number)
            if under_way is not None:
                under_way.result()
            data = self._blocks.read(number)
            if data is not None:
                with self._lock:
                    self._hot[number] = data
                    while len(self._hot) > _HOT:
                        self._hot.popitem(last=False)
                return data
            # What was not asked for ahead is a directory, and what it points to lies behind it.
            self._begin([*needed, *range(needed.stop, min(needed.stop + 1, self._blocks.count))])
        raise SlideFetchError("no-space", f"blocks of {self._shown} do not stay on this node's disk", True)

    def _begin(self, numbers: list[int]) -> None:
        """Fetch what is neither here nor under way; neighbours and those one block apart together."""
        with self._lock:
            if self._closed.is_set():
                raise SlideFetchError("cancelled", f"{self._shown} was closed while it was read")
            missing = [
                n for n in numbers if n not in self._under_way and n not in self._hot and not self._blocks.has(n)
            ]
            runs: list[tuple[int, int]] = []  # first, last
            for number in missing:
                if runs and number - runs[-1][1] <= 2 and number - runs[-1][0] < self._run:
                    runs[-1] = (runs[-1][0], number)
                else:
                    if runs and runs[-1][1] > runs[-1][0]:
                        self._run = min(_RUN, 2 * self._run)
                    runs.append((number, number))
            for first, last in runs:
                future = self._pool.submit(self._fetch, first, last - first + 1)
                for number in range(first, last + 1):
                    self._under_way.setdefault(number, future)
                future.add_done_callback(partial(self._done, first, last))

    def _done(self, first: int, last: int, future: Future[None]) -> None:
        with self._lock:
            for number in range(first, last + 1):
                if self._under_way.get(number) is future:
                    del self._under_way[number]

    def _fetch(self, first: int, count: int) -> None:
        with self._blocks.claim(first, count):
            missing = [n for n in range(first, first + count) if not self._blocks.has(n)]
            if not missing or self._closed.is_set():
                return
            start = missing[0]
            data = self._get(start * BLOCK, min(self.size, (missing[-1] + 1) * BLOCK) - start * BLOCK)
            for number in range(start, missing[-1] + 1):
                at = (number - start) * BLOCK
                self._blocks.write(number, data[at : at + BLOCK])

    def _get(self, offset: int, length: int) -> bytes:
        limits = self._options.limits
        for attempt in range(limits.retries + 1):
            try:
                return self._once(offset, length)
            except (httpx.TransportError, SlideFetchError) as error:
                failed = failure_to_fetch(self._url, error)
                if not failed.transient or failed.reason == "changed" or attempt == limits.retries:
                    raise failed from None
                log.info("asking again for bytes of %s: %s", self._shown, failed.reason)
                if self._closed.wait(min(limits.backoff_s * 2**attempt, limits.backoff_max_s)):
                    raise failed from None
        raise AssertionError("unreachable")

    def _once(self, offset: int, length: int) -> bytes:
        started = time.monotonic()
        answer = send(self._http, self._url, {"Range": f"bytes={offset}-{offset + length - 1}"}, self._options.limits)
        try:
            status, head = answer.status_code, answer.headers
            if status == 416:
                raise SlideFetchError("short-body", f"the slide at {self._shown} is empty or became shorter")
            if status == 200 or head.get("content-encoding", "identity").lower() != "identity":
                raise NoRangesError("no-ranges", f"the storage of {self._shown} only gives whole files")
            if status != 206:
                raise refusal(self._url, status, head, first_bytes(answer), datetime.now(UTC))
            found = _RANGE.fullmatch(head.get("content-range", ""))
            if not found or int(found[1]) != offset:
                raise SlideFetchError("unreachable", f"{self._shown} answered with a range not asked for", True)
            self._check_version(int(found[3]), head.get("etag") or head.get("last-modified"))
            expected = min(length, int(found[3]) - offset)
            pieces, got = [], 0
            for piece in answer.iter_raw():
                pieces.append(piece)
                got += len(piece)
                if got > expected:
                    break
            if got != expected:
                raise SlideFetchError(
                    "short-body", f"{self._shown} sent {got:,} bytes where {expected:,} were asked for", True
                )
            with self._lock:
                self.requests += 1
                self.fetched_bytes += got
            log.debug("%d bytes of %s in %.3f s", got, self._shown, time.monotonic() - started)
            return b"".join(pieces)
        finally:
            answer.close()

    def _check_version(self, total: int, version: str | None) -> None:
        with self._lock:
            if self._total is None:
                self._total, self._version = total, version
            elif (total, version) != (self._total, self._version):
                raise SlideFetchError("changed", f"the slide at {self._shown} was replaced while it was read", True)

    def _remove_own(self) -> None:
        if self._own is not None:
            with suppress(OSError):
                shutil.rmtree(self._own)
