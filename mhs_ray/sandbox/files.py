"""The attempt's own object store: its slide to fetch and one debug file to put, by signed URLs as S3 gives them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from mhs_ray.sandbox.routes import FILES_HOST

log = logging.getLogger(__name__)

Method = Literal["GET", "PUT"]

_RANGE: Final = re.compile(r"bytes=\s*(?:\d+-\d*|-\d+)(?:\s*,\s*(?:\d+-\d*|-\d+))*\s*", re.IGNORECASE)
_STALL_S: Final = 120.0
_PIECE: Final = 1 << 20


class _File(FileResponse):
    chunk_size = _PIECE  # 64 KiB, the default, costs a thread switch each: 0.3 GB/s instead of 0.8 over TLS


class _RefusalError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True, slots=True)
class _Published:
    path: Path
    filename: str


class FileServer:
    """An ASGI application that serves published files by GET and HEAD with Range, and takes one upload by PUT.

    key: signs URLs; a server with the same key honours the URLs of an earlier one.
    uploads: folder on the node, out of the container's sight, where an upload ends up under its object's name.
    """

    def __init__(self, key: bytes, uploads: Path, max_upload_bytes: int, host: str = FILES_HOST) -> None:
        self._key, self._uploads, self._max_upload_bytes, self._host = key, uploads, max_upload_bytes, host
        self._published: dict[str, _Published] = {}
        self._accepted: dict[str, str] = {}
        self._uploading: asyncio.Lock | None = None

    def publish(self, name: str, path: Path, filename: str) -> None:
        """Serve the file at `path` as object `name`; clients that ask are told that it is called `filename`."""
        self._published[self._object_path(name)] = _Published(path, filename)

    def withdraw(self, name: str) -> None:
        """Serve object `name` no more and take no upload of it, whatever URLs of it are about."""
        self._published.pop(self._object_path(name), None)
        self._accepted.pop(self._object_path(name), None)

    def accept(self, name: str) -> None:
        """Take uploads of object `name`, a plain file name; each complete one replaces the one before."""
        self._accepted[self._object_path(name)] = name

    def url(self, name: str, method: Method, expires_at: float) -> str:
        """Return a URL that does `method` (GET: also HEAD) on object `name` until `expires_at` (Unix time), then 403.

        Its path says nothing of the format, like a Techcyte one.
        """
        path = self._object_path(name)
        return f"https://{self._host}{path}?{self.sign(path, method, expires_at)}"

    def sign(self, path: str, method: Method, expires_at: float) -> str:
        """Return the query that allows `method` on `path` until `expires_at` (Unix seconds)."""
        expires = str(int(expires_at))
        return f"X-Mhs-Expires={expires}&X-Mhs-Signature={self._signature(path, method, expires)}"

    def uploaded(self, name: str) -> Path | None:
        """Return where the last complete upload of object `name` is, None if there was none."""
        path = self._uploads / name
        return path if path.is_file() and not path.is_symlink() else None

    def _object_path(self, name: str) -> str:
        return "/" + hmac.digest(self._key, b"object " + name.encode(), "sha256").hex()[:32]

    def _signature(self, path: str, method: str, expires: str) -> str:
        return hmac.digest(self._key, f"url {method} {path} {expires}".encode(), "sha256").hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        response: Response
        try:
            path: str = scope["path"]
            self._check_signature(path, scope["method"], scope["query_string"].decode("ascii", "replace"))
            if scope["method"] == "PUT":
                response = await self._put(path, Request(scope, receive))
            else:
                response = await self._get(path, scope)
        except _RefusalError as refusal:
            response = _xml(refusal)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _check_signature(self, path: str, method: str, query: str) -> None:
        signed_as = {"GET": "GET", "HEAD": "GET", "PUT": "PUT"}.get(method)
        if signed_as is None:
            raise _RefusalError(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
        given = parse_qs(query)
        expires, signature = given.get("X-Mhs-Expires", [""]), given.get("X-Mhs-Signature", [""])
        if not expires[0] or not signature[0]:
            raise _RefusalError(403, "AccessDenied", "Access Denied: the URL's signature is missing.")
        right = self._signature(path, signed_as, expires[0])
        one_each = len(expires) == len(signature) == 1
        if not one_each or not hmac.compare_digest(right.encode(), signature[0].encode()):
            text = "The request signature we calculated does not match the signature you provided."
            raise _RefusalError(403, "SignatureDoesNotMatch", text)
        if time.time() >= int(expires[0]):
            raise _RefusalError(403, "AccessDenied", "Request has expired")

    async def _get(self, path: str, scope: Scope) -> Response:
        published = self._published.get(path)
        facts = await asyncio.to_thread(_stat, published.path) if published else None
        if published is None or facts is None:
            raise _RefusalError(404, "NoSuchKey", "The specified key does not exist.")
        # As S3 does: a Range that is none is no error but ignored.
        scope["headers"] = [(k, v) for k, v in scope["headers"] if k != b"range" or _sound_range(v)]
        etag = hashlib.sha256(f"{facts.st_ino} {facts.st_mtime_ns} {facts.st_size}".encode()).hexdigest()[:32]
        return _File(
            published.path,
            stat_result=facts,
            filename=published.filename,
            media_type="application/octet-stream",
            headers={"etag": f'"{etag}"', "last-modified": formatdate(facts.st_mtime, usegmt=True)},
        )

    async def _put(self, path: str, request: Request) -> Response:
        name = self._accepted.get(path)
        if name is None:
            raise _RefusalError(404, "NoSuchKey", "The specified key does not exist.")
        too_large = _RefusalError(
            413, "EntityTooLarge", f"Your proposed upload exceeds the maximum of {self._max_upload_bytes} bytes."
        )
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self._max_upload_bytes:
            raise too_large
        if self._uploading is None:
            self._uploading = asyncio.Lock()
        part = self._uploads / f".{name}.{secrets.token_hex(6)}"
        async with self._uploading:  # one at a time, so the cap on one is the cap on the disk
            try:
                etag = await self._receive(request, part, too_large)
                await asyncio.to_thread(part.replace, self._uploads / name)
            except OSError as e:
                log.warning("a container's debug upload failed: %s", e.strerror)
                raise _RefusalError(500, "InternalError", "The node cannot keep the upload now.") from e
            except TimeoutError:
                raise _RefusalError(408, "RequestTimeout", "The upload stalled.") from None
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
        return Response(headers={"etag": f'"{etag}"'})

    async def _receive(self, request: Request, part: Path, too_large: _RefusalError) -> str:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        md5 = hashlib.md5(usedforsecurity=False)  # what an ETag of S3 is
        size = 0
        pending = bytearray()

        def flush() -> None:
            file.write(pending)
            md5.update(pending)
            pending.clear()

        with os.fdopen(fd, "wb", buffering=0) as file:
            stream = request.stream()
            while True:
                async with asyncio.timeout(_STALL_S):
                    piece = await anext(stream, None)
                if piece is None:
                    break
                size += len(piece)
                if size > self._max_upload_bytes:
                    raise too_large
                pending += piece
                if len(pending) >= _PIECE:
                    await asyncio.to_thread(flush)
            await asyncio.to_thread(flush)
        return md5.hexdigest()


def _stat(path: Path) -> os.stat_result | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None


def _sound_range(value: bytes) -> bool:
    text = value.decode("latin-1")
    if not _RANGE.fullmatch(text) or len(text) > 4000:
        return False
    pairs = (part.strip().partition("-") for part in text.split("=", 1)[1].split(","))
    return all(not (first and last) or int(first) <= int(last) for first, _, last in pairs)


def _xml(refusal: _RefusalError) -> Response:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message>"
        f"<RequestId>{secrets.token_hex(8).upper()}</RequestId></Error>"
    )
    # Close: what is left of a refused upload must not be read to the end.
    return Response(body, refusal.status, media_type="application/xml", headers={"connection": "close"})
