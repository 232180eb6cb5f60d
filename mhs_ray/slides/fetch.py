"""Bring a slide's bytes from a presigned URL into a local file: resumed, bounded, verified.

A broken connection is resumed by Range with If-Range, so that bytes of two versions never mix. No message holds a
URL's query.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urljoin, urlsplit

import httpx

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.domain.redact import redact_text, redact_url
from mhs_ray.slides.cancelling import Cancelled, check, never, pause
from mhs_ray.slides.presigned import expires_at, refusal
from mhs_ray.slides.transport import GuardedTransport, Pace
from mhs_ray.slides.url_guard import UrlPolicy

log = logging.getLogger(__name__)

CLOCK_SKEW: Final = timedelta(minutes=15)
"""A URL that ended longer ago than clocks may differ is not tried at all; the storage judges the others."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PIECE: Final = 1 << 20
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a download may cost.

    retries: failures in a row without one new byte before giving up. backoff_s doubles up to backoff_max_s.
    stall_s: an answer must bring `stall_min_bytes` in every such span. deadline_s: of the whole download.
    """

    max_bytes: int = 200 << 30
    connect_s: float = 10.0
    stall_s: float = 30.0
    stall_min_bytes: int = 4096
    deadline_s: float = 3600.0
    retries: int = 5
    backoff_s: float = 0.5
    backoff_max_s: float = 15.0
    max_redirects: int = 5


@dataclass(frozen=True, slots=True)
class FetchResult:
    """A finished download. etag: as the storage gave it, quotes included; sha256: of the bytes written, hex."""

    size: int
    etag: str | None
    last_modified: str | None
    sha256: str


OnProgress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None) at the start and about every MiB; what it raises ends the fetch."""


@dataclass(slots=True)
class _State:
    """What is known between two tries."""

    offset: int = 0
    total: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a strong ETag, else the date; None when bytes cannot safely be joined."""
        if self.etag:
            return None if self.etag.startswith("W/") else self.etag
        return self.last_modified


def fetch(
    url: str,
    dest: Path,
    *,
    limits: FetchLimits | None = None,
    policy: UrlPolicy | None = None,
    on_progress: OnProgress | None = None,
    cancelled: Cancelled = never,
    tls: ssl.SSLContext | None = None,
) -> FetchResult:
    """Write the bytes at `url` (http, https, or file where the policy says so) to `dest`, which is replaced.

    Raises SlideFetchError: ``expired``, ``forbidden``, ``not-found``, ``refused`` (by the policy or in an odd way),
    ``stalled``, ``short-body``, ``changed``, ``too-large``, ``no-space``, ``unreachable``, ``cancelled``; `dest`
    is then removed.
    """
    limits, policy = limits or FetchLimits(), policy or UrlPolicy()
    on_progress = _unless(cancelled, on_progress)
    policy.check_url(url)
    try:
        if urlsplit(url).scheme == "file":
            return _copy(policy.check_file(url), dest, limits, on_progress)
        end = expires_at(url)
        if end and end + CLOCK_SKEW < datetime.now(UTC):
            raise SlideFetchError(
                "expired",
                f"the slide's URL expired at {end:%Y-%m-%d %H:%M:%S} UTC: {redact_url(url)}; submit the task again",
            )
        with client(policy, limits, tls, cancelled) as http, dest.open("wb") as file:
            return _Download(http, url, file, dest.absolute().parent, limits, on_progress, cancelled).run()
    except OSError as error:
        dest.unlink(missing_ok=True)
        raise SlideFetchError("no-space", f"the slide cannot be written on this node: {error.strerror}", True) from None
    except BaseException:
        dest.unlink(missing_ok=True)
        raise


def revalidate(
    url: str,
    etag: str | None,
    *,
    limits: FetchLimits | None = None,
    policy: UrlPolicy | None = None,
    cancelled: Cancelled = never,
    tls: ssl.SSLContext | None = None,
) -> bool:
    """Ask the storage whether `url` may still be read and still has `etag`; one byte is asked for, HEAD is not signed.

    Raises SlideFetchError when the URL itself is refused: a copy in a cache is no right to read it.
    """
    limits, policy = limits or FetchLimits(), policy or UrlPolicy()
    policy.check_url(url)
    if urlsplit(url).scheme == "file":
        file = policy.check_file(url)
        return file.is_file() and _file_etag(file) == etag
    with client(policy, limits, tls, cancelled) as http:
        for attempt in range(limits.retries + 1):
            try:
                answer = send(http, url, {"Range": "bytes=0-0"}, limits)
                try:
                    if answer.status_code in (200, 206):
                        return etag is not None and answer.headers.get("etag") == etag
                    if answer.status_code == 416:  # an empty object
                        return False
                    raise refusal(url, answer.status_code, answer.headers, first_bytes(answer), datetime.now(UTC))
                finally:
                    answer.close()
            except (httpx.TransportError, SlideFetchError) as error:
                failed = failure_to_fetch(url, error)
                if not failed.transient or attempt == limits.retries:
                    raise failed from None
                pause(min(limits.backoff_s * 2**attempt, limits.backoff_max_s), cancelled)
    raise AssertionError("unreachable")


def _unless(cancelled: Cancelled, on_progress: OnProgress | None) -> OnProgress:
    def progress(done: int, total: int | None) -> None:
        check(cancelled)
        if on_progress is not None:
            on_progress(done, total)

    return progress


def client(
    policy: UrlPolicy, limits: FetchLimits, tls: ssl.SSLContext | None = None, cancelled: Cancelled = never
) -> httpx.Client:
    """Return an HTTP client under `policy`; it follows no redirect by itself and uses no proxy."""
    stall_s = min(limits.stall_s, limits.deadline_s)  # a host that says nothing must not hold us beyond the deadline
    return httpx.Client(
        transport=GuardedTransport(policy, Pace(stall_s, limits.stall_min_bytes, cancelled), tls),
        timeout=httpx.Timeout(stall_s, connect=limits.connect_s),
        follow_redirects=False,
        trust_env=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "mhs-ray"},
    )


class _Download:
    def __init__(
        self,
        http: httpx.Client,
        url: str,
        file: BinaryIO,
        folder: Path,
        limits: FetchLimits,
        on_progress: OnProgress,
        cancelled: Cancelled,
    ) -> None:
        self._http, self._url, self._file, self._folder = http, url, file, folder
        self._limits, self._on_progress, self._cancelled = limits, on_progress, cancelled
        self._state = _State()
        self._shown = redact_url(url)
        self._ends = time.monotonic() + limits.deadline_s

    def run(self) -> FetchResult:
        failures, reached = 0, 0
        while True:
            try:
                self._once()
                break
            except (httpx.TransportError, SlideFetchError) as error:
                failed = failure_to_fetch(self._url, error)
                failures = failures + 1 if self._state.offset <= reached else 1
                reached = max(reached, self._state.offset)
                if not failed.transient or failed.reason in ("changed", "no-space") or failures > self._limits.retries:
                    raise failed from None
                delay = min(self._limits.backoff_s * 2 ** (failures - 1), self._limits.backoff_max_s)
                self._check_deadline(delay)
                log.info("resuming %s at byte %d: %s", self._shown, self._state.offset, failed.reason)
                pause(delay, self._cancelled)
        state = self._state
        return FetchResult(state.offset, state.etag, state.last_modified, state.digest.hexdigest())

    def _once(self) -> None:
        state = self._state
        headers = {}
        if state.offset and state.validator:
            headers = {"Range": f"bytes={state.offset}-", "If-Range": state.validator}
        elif state.offset:
            self._restart()
        answer = send(self._http, self._url, headers, self._limits)
        try:
            self._take_head(answer)
            self._on_progress(state.offset, state.total)
            self._take_body(answer)
        finally:
            answer.close()

    def _take_head(self, answer: httpx.Response) -> None:
        state, head = self._state, answer.headers
        if answer.status_code not in (200, 206):
            if answer.status_code == 416 and state.offset:
                raise self._changed()
            raise refusal(self._url, answer.status_code, head, first_bytes(answer), datetime.now(UTC))
        if head.get("content-encoding", "identity").lower() != "identity":
            raise SlideFetchError("refused", f"{self._shown} is stored compressed; store the slide as it is")
        etag, modified = head.get("etag"), head.get("last-modified")
        length = _number(head.get("content-length"))
        total = length
        if answer.status_code == 206:
            found = _RANGE.fullmatch(head.get("content-range", ""))
            if not found or int(found[1]) != state.offset or not state.offset:
                raise SlideFetchError(
                    "unreachable", f"{self._shown} answered with a range that was not asked for", True
                )
            total = int(found[3])
        known = state.total is not None or state.etag is not None
        if known and (total != state.total or etag != state.etag):
            raise self._changed()
        if answer.status_code == 200 and state.offset:
            self._restart()  # the storage does not do ranges
        state.total, state.etag, state.last_modified = total, etag, modified
        if total is not None and total > self._limits.max_bytes:
            raise self._too_large(total)
        if total == 0:
            raise SlideFetchError("short-body", f"the slide at {self._shown} is empty")
        free = shutil.disk_usage(self._folder).free
        if total is not None and total - state.offset > free:
            raise SlideFetchError(
                "no-space", f"the slide has {total:,} bytes, but this node has only {free:,} bytes free", True
            )

    def _take_body(self, answer: httpx.Response) -> None:
        state, reported = self._state, self._state.offset
        for piece in answer.iter_raw():
            self._file.write(piece)
            state.digest.update(piece)
            state.offset += len(piece)
            if state.offset > self._limits.max_bytes:
                raise self._too_large(state.offset)
            if state.offset - reported >= _PIECE:
                reported = state.offset
                self._on_progress(state.offset, state.total)
            self._check_deadline(0)
        self._file.flush()
        if state.total is not None and state.offset != state.total:
            raise SlideFetchError(
                "short-body",
                f"the slide at {self._shown} ended after {state.offset:,} of {state.total:,} bytes",
                True,
            )
        if not state.offset:
            raise SlideFetchError("short-body", f"the slide at {self._shown} is empty")
        self._on_progress(state.offset, state.total)

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._state.offset, self._state.digest = 0, hashlib.sha256()

    def _check_deadline(self, more: float) -> None:
        if time.monotonic() + more > self._ends:
            raise SlideFetchError(
                "deadline", f"the slide at {self._shown} did not arrive in {self._limits.deadline_s:g} s"
            )

    def _changed(self) -> SlideFetchError:
        return SlideFetchError("changed", f"the slide at {self._shown} was replaced while it was being fetched", True)

    def _too_large(self, size: int) -> SlideFetchError:
        return SlideFetchError(
            "too-large", f"the slide at {self._shown} has {size:,} bytes or more; {self._limits.max_bytes:,} are taken"
        )


def send(http: httpx.Client, url: str, headers: dict[str, str], limits: FetchLimits) -> httpx.Response:
    """GET with redirects followed by hand: the policy judges each step, https never falls back to http."""
    for _ in range(limits.max_redirects + 1):
        answer = http.send(http.build_request("GET", url, headers=headers), stream=True)
        if answer.status_code not in _REDIRECTS:
            return answer
        target = urljoin(url, answer.headers.get("location", ""))
        answer.close()
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise SlideFetchError("refused", f"{redact_url(url)} redirects from https to {redact_url(target)}")
        if urlsplit(target).scheme not in ("http", "https"):
            raise SlideFetchError("refused", f"{redact_url(url)} redirects to something that is no http URL")
        url = target
    raise SlideFetchError("refused", f"{redact_url(url)} redirects more than {limits.max_redirects} times")


def failure_to_fetch(url: str, error: Exception) -> SlideFetchError:
    """Return what went wrong with `url`, in our words."""
    if isinstance(error, SlideFetchError):
        return error
    shown, detail = redact_url(url), redact_text(str(error))[:200]
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return SlideFetchError("unreachable", f"{shown} cannot be reached: {detail or 'no answer'}", True)
    if isinstance(error, httpx.TimeoutException):
        return SlideFetchError("stalled", f"{shown} stopped sending: {detail or 'nothing came any more'}", True)
    if "without sending complete message body" in detail or "incomplete" in detail:
        return SlideFetchError("short-body", f"{shown} sent fewer bytes than it announced", True)
    return SlideFetchError("unreachable", f"the connection to {shown} broke: {detail or type(error).__name__}", True)


def first_bytes(answer: httpx.Response) -> bytes:
    """The first 64 KiB of an error's body; whatever goes wrong with it does not matter."""
    data = b""
    try:
        for piece in answer.iter_raw():
            data += piece
            if len(data) >= 65536:
                break
    except httpx.TransportError:
        pass
    return data[:65536]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _copy(source: Path, dest: Path, limits: FetchLimits, on_progress: OnProgress) -> FetchResult:
    if not source.is_file():
        raise SlideFetchError("not-found", f"there is no slide file {source.name}")
    total = source.stat().st_size
    if total > limits.max_bytes:
        raise SlideFetchError("too-large", f"{source.name} has {total:,} bytes; {limits.max_bytes:,} are taken")
    digest, done = hashlib.sha256(), 0
    on_progress(0, total)
    with source.open("rb") as reader, dest.open("wb") as writer:
        while piece := reader.read(_PIECE):
            writer.write(piece)
            digest.update(piece)
            done += len(piece)
            on_progress(done, total)
    return FetchResult(done, _file_etag(source), None, digest.hexdigest())


def _file_etag(path: Path) -> str:
    """What changes when a file does, for `revalidate`."""
    facts = path.stat()
    return f'"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"'
