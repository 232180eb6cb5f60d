"""The ASGI application that serves a LocalBlobs' signed URLs, as S3 would.

``GET``/``HEAD`` with Range, If-Range, If-Match and If-None-Match; ``PUT`` streamed to disk, with
``If-None-Match: *`` for "only if it is not there". Errors are S3-like XML. No request holds more than about
a MiB of a file in memory: reads follow the client's pace, and writes hold the client to the disk's.

A large upload may come in pieces: ``PUT`` with ``Content-Range: bytes first-last/total`` appends to what is
there so far (``202``, the last piece ``200``); ``HEAD`` on the PUT URL tells ``Upload-Offset``; a piece that
does not begin there gets ``409`` with ``Upload-Offset``. Whoever holds the PUT URL can so go on after a cut.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import Any, Final
from urllib.parse import quote
from xml.sax.saxutils import escape

from mhs_ray.domain.errors import BlobError, BlobNotFoundError, BlobsFullError
from mhs_ray.ports import BlobInfo
from mhs_ray.store.blobs.incoming import BlobExistsError, UploadOffsetError
from mhs_ray.store.blobs.local import LocalBlobs
from mhs_ray.store.blobs.ranges import NotSatisfiableError, parse_content_range, parse_range
from mhs_ray.store.blobs.signing import Grant, SignatureError, verify

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[str, str]]

_PIECE: Final = 256 << 10
_FLUSH_AT: Final = 1 << 20
_DISCARD_AT_MOST: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """max_blob_bytes: of one PUT; max_bytes_by_prefix: the same for keys that begin so, the longest prefix wins.

    idle_s: a client that neither sends nor takes anything for so long is let go.
    cors_origins: origins whose pages may use the URLs; () sends no CORS header at all.
    """

    max_blob_bytes: int = 256 << 30
    max_bytes_by_prefix: Mapping[str, int] = field(default_factory=dict)
    idle_s: float = 60.0
    cors_origins: tuple[str, ...] = ()

    def max_bytes(self, key: str) -> int:
        """Return how large a blob under `key` may be."""
        fitting = [prefix for prefix in self.max_bytes_by_prefix if key.startswith(prefix)]
        return self.max_bytes_by_prefix[max(fitting, key=len)] if fitting else self.max_blob_bytes


class _RefusalError(Exception):
    def __init__(self, status: int, code: str, message: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message, self.headers = status, code, message, list(headers)


class _ClientGoneError(Exception):
    pass


class BlobApp:
    """ASGI application over one store."""

    def __init__(self, store: LocalBlobs, limits: HttpLimits = HttpLimits()) -> None:
        self.store, self.limits = store, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan and websockets are not taken."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served here")
        await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: BlobApp, scope: Scope, receive: Receive, send: Send) -> None:
        self.store, self.limits = app.store, app.limits
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = scope["query_string"].decode("latin-1")
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._receive, self._send = receive, send
        self._body_done = self.method != "PUT"
        self._stalled = False

    async def run(self) -> None:
        try:
            await self._answer()
        except _ClientGoneError:
            log.info("%s %s: the client left", self.method, self.path)
        except _RefusalError as refusal:
            await self._refuse(refusal)
        except BlobNotFoundError:
            await self._refuse(_RefusalError(404, "NoSuchKey", "The specified key does not exist."))
        except BlobExistsError:
            await self._refuse(_RefusalError(412, "PreconditionFailed", "There is a blob under this key already."))
        except UploadOffsetError as error:
            headers = [("upload-offset", str(error.offset))]
            await self._refuse(_RefusalError(409, "InvalidPart", str(error), headers))
        except BlobsFullError as error:
            log.warning("%s %s: %s", self.method, self.path, error)
            headers = [("retry-after", str(error.retry_after_s))]
            await self._refuse(_RefusalError(507, "InsufficientStorage", str(error), headers))
        except BlobError as error:
            log.warning("%s %s: %s", self.method, self.path, error)
            await self._refuse(_RefusalError(400, "InvalidRequest", str(error)))

    async def _answer(self) -> None:
        if self.path == "/healthz" and self.method in {"GET", "HEAD"}:
            await self._reply(200, [("content-type", "text/plain")], b"ok\n")
            return
        if self.method == "OPTIONS" and self._cors():
            allow = [("access-control-allow-methods", "GET, HEAD, PUT"), ("access-control-allow-headers", "*")]
            await self._reply(204, [*allow, ("access-control-max-age", "600")])
            return
        if self.method not in {"GET", "HEAD", "PUT"}:
            raise _RefusalError(405, "MethodNotAllowed", "Use GET, HEAD or PUT.", [("allow", "GET, HEAD, PUT")])
        try:
            grant = verify(self.store.keys, self.path, self.query, time.time())
        except SignatureError as refused:
            raise _RefusalError(403, refused.code, refused.message) from None
        if self.method == "PUT" == grant.method:
            await self._put(grant)
        elif self.method == "HEAD" and grant.method == "PUT":
            offset = await asyncio.to_thread(self.store.upload_offset, grant.key)
            await self._reply(200, [("upload-offset", str(offset))])
        elif self.method in {"GET", "HEAD"} and grant.method == "GET":
            await self._get(grant)
        else:
            raise _RefusalError(403, "AccessDenied", f"This URL was signed for {grant.method}, not for {self.method}.")

    # ---- GET, HEAD

    async def _get(self, grant: Grant) -> None:
        fd, info = await asyncio.to_thread(self.store.open_fd, grant.key)
        try:
            etag = f'"{info.etag}"'
            headers = [("etag", etag), ("last-modified", _http_date(info)), ("accept-ranges", "bytes")]
            if _names(self.headers.get("if-none-match"), etag):
                await self._reply(304, headers)
                return
            if "if-match" in self.headers and not _names(self.headers["if-match"], etag):
                raise _RefusalError(412, "PreconditionFailed", "The blob is not the one that If-Match names.")
            wanted = self._wanted(info, etag)
            start, end = wanted or (0, info.size)
            headers += [("content-type", "application/octet-stream"), ("x-content-type-options", "nosniff")]
            headers.append(("content-length", str(end - start)))
            if wanted:
                headers.append(("content-range", f"bytes {start}-{end - 1}/{info.size}"))
            if grant.filename is not None:
                headers.append(("content-disposition", _disposition(grant.filename)))
            await self._start(206 if wanted else 200, headers)
            if self.method == "GET":
                await self._stream(fd, start, end)
            await self._send({"type": "http.response.body", "body": b""})
        finally:
            os.close(fd)

    def _wanted(self, info: BlobInfo, etag: str) -> tuple[int, int] | None:
        if "range" not in self.headers or self.headers.get("if-range", etag) not in {etag, _http_date(info)}:
            return None
        try:
            return parse_range(self.headers["range"], info.size)
        except NotSatisfiableError:
            message = f"The blob has {info.size} bytes; the range begins behind its end."
            raise _RefusalError(416, "InvalidRange", message, [("content-range", f"bytes */{info.size}")]) from None

    async def _stream(self, fd: int, position: int, end: int) -> None:
        gone = asyncio.ensure_future(self._receive_disconnect())
        try:
            while position < end:
                piece = await _read(fd, min(_PIECE, end - position), position)
                if not piece:  # cut short under our hands; the missing length tells the client
                    raise _ClientGoneError
                position += len(piece)
                body = {"type": "http.response.body", "body": piece, "more_body": True}
                try:
                    async with asyncio.timeout(self.limits.idle_s):
                        await self._send(body)  # waits while the client does not read
                except TimeoutError:
                    raise _ClientGoneError from None
                if gone.done():
                    raise _ClientGoneError
        finally:
            gone.cancel()

    async def _receive_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # ---- PUT

    async def _put(self, grant: Grant) -> None:
        key, limit = grant.key, self.limits.max_bytes(grant.key)
        length = self._content_length()
        piece_of = None
        if "content-range" in self.headers:
            piece_of = parse_content_range(self.headers["content-range"])
            if piece_of is None or length != piece_of[1] - piece_of[0]:
                raise _RefusalError(400, "InvalidRange", "Content-Range is not 'bytes first-last/total' of this body.")
        total = piece_of[2] if piece_of else length
        if total is not None and total > limit:
            raise _RefusalError(413, "EntityTooLarge", f"A blob here may have {limit} bytes at most.")
        if_absent = self.headers.get("if-none-match", "").strip() == "*"
        if if_absent and await asyncio.to_thread(self.store.stat, key):
            raise BlobExistsError(f"there is a blob {key} already")
        resume = (piece_of[0], piece_of[2]) if piece_of else None
        incoming = await asyncio.to_thread(self.store.incoming, key, length, resume)
        try:
            received = await self._store_body(incoming.write, limit)
            if length is not None and received != length:
                raise _RefusalError(400, "IncompleteBody", f"{received} bytes came instead of the {length} announced.")
            if piece_of and piece_of[1] < piece_of[2]:
                await self._reply(202, [("upload-offset", str(piece_of[1]))])
                return
            info = await asyncio.to_thread(incoming.commit, if_absent)
        finally:
            await asyncio.to_thread(incoming.close)
        await self._reply(200, [("etag", f'"{info.etag}"')])

    def _content_length(self) -> int | None:
        text = self.headers.get("content-length")
        return None if text is None else int(text)  # the HTTP parser let only digits pass

    async def _store_body(self, write: Callable[[bytearray], None], limit: int) -> int:
        buffer, received = bytearray(), 0
        while not self._body_done:
            body = await self._more()
            received += len(body)
            if received > limit:
                raise _RefusalError(413, "EntityTooLarge", f"A blob here may have {limit} bytes at most.")
            buffer += body
            if len(buffer) >= _FLUSH_AT:
                # Nothing is asked of the client meanwhile: this is what holds it to the disk's pace.
                await asyncio.to_thread(write, buffer)
                buffer = bytearray()
        if buffer:
            await asyncio.to_thread(write, buffer)
        return received

    async def _more(self) -> bytes:
        try:
            async with asyncio.timeout(self.limits.idle_s):
                message = await self._receive()
        except TimeoutError:
            self._stalled = True
            raise _RefusalError(408, "RequestTimeout", f"Nothing came for {self.limits.idle_s:g} s.") from None
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        self._body_done = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    # ---- answers

    async def _refuse(self, refusal: _RefusalError) -> None:
        headers = [*refusal.headers, ("content-type", "application/xml")]
        if not self._body_done and not await self._discard():
            headers.append(("connection", "close"))
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message></Error>"
        )
        await self._reply(refusal.status, headers, xml.encode())

    async def _discard(self) -> bool:
        # Most clients read the answer only once they sent the body; an early close would hide it from them.
        if self._stalled or self.headers.get("expect", "").lower() == "100-continue":
            return False
        discarded = 0
        try:
            while not self._body_done and discarded < _DISCARD_AT_MOST:
                discarded += len(await self._more())
        except (_ClientGoneError, _RefusalError):
            return False
        return bool(self._body_done)

    def _cors(self) -> Headers:
        origin = self.headers.get("origin")
        if origin is None or not {"*", origin} & set(self.limits.cors_origins):
            return []
        expose = "ETag, Content-Range, Accept-Ranges, Content-Length, Upload-Offset"
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", expose),
            ("vary", "Origin"),
        ]

    async def _start(self, status: int, headers: Headers) -> None:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in [*headers, *self._cors()]]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _reply(self, status: int, headers: Headers, body: bytes = b"") -> None:
        length = [] if status in {204, 304} else [("content-length", str(len(body)))]
        await self._start(status, [*headers, *length])
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})


async def _read(fd: int, size: int, position: int) -> bytes:
    buffer = bytearray(size)
    try:
        # What the page cache holds is had at once; only a real wait for the disk is worth a thread.
        count = os.preadv(fd, [buffer], position, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        count = await asyncio.to_thread(os.preadv, fd, [buffer], position)
    return bytes(memoryview(buffer)[:count])


def _names(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return not tags.isdisjoint({"*", etag})


def _http_date(info: BlobInfo) -> str:
    return format_datetime(info.modified_at, usegmt=True)


def _disposition(filename: str) -> str:
    # RFC 6266: a plain name for old clients, the true one for the rest.
    plain = "".join(c if 32 <= ord(c) < 127 and c not in '"\\%' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
