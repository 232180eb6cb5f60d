"""The application behind the local hosts: the results gateway forwarded, the attempt's files served."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import httpx
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mhs_ray.sandbox.routes import LocalRoute, RouteTable, split_authority, split_target
from mhs_ray.sandbox.tls import system_roots

log = logging.getLogger(__name__)

_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade expect".split()
)
_OURS: Final = re.compile(rb"x-forwarded-.*|forwarded|x-real-ip|host")
_DEVIOUS: Final = re.compile(rb"//|\\|(?:^|/)(?:\.|%2e){1,2}(?:/|$)|%2f|%5c|%00", re.IGNORECASE)
_STALL_S: Final = 300.0
_KEPT_BYTES: Final = 4 << 20  # a smaller body is kept until it is answered, and can be sent again
_AWAY: Final = frozenset({404, 500, 502, 503, 504})
DEFAULT_MAX_BODY: Final = 512 << 20


class _TooLargeError(Exception):
    """The body has more bytes than are forwarded."""


class LocalHosts:
    """Serves every LocalRoute of `table`: `files` where it has no upstream, else its upstream, streamed both ways.

    connect_patience_s: how long an unreachable gateway is tried again (nothing was sent yet), so that a restart of
    the platform's API does not cost a finished computation its results. max_body_bytes: of a request that is
    forwarded; what is above is taken in here, so that its client hears the answer, and never reaches the gateway.
    """

    def __init__(
        self,
        table: RouteTable,
        files: ASGIApp,
        connect_patience_s: float = 60,
        max_body_bytes: int = DEFAULT_MAX_BODY,
    ) -> None:
        self._table, self._files, self._max_body_bytes = table, files, max_body_bytes
        self._patience_s = connect_patience_s
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> ASGIApp:
        self._client = httpx.AsyncClient(
            trust_env=False,
            # Without an https upstream nothing is ever verified, and loading the roots would cost 20 ms.
            verify=ssl.create_default_context(cafile=str(system_roots())) if self._speaks_tls() else False,
            timeout=httpx.Timeout(_STALL_S, connect=5),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=8),
        )
        return self

    def _speaks_tls(self) -> bool:
        upstreams = (r.upstream for r in self._table.routes if isinstance(r, LocalRoute))
        return any(upstream is not None and upstream.startswith("https:") for upstream in upstreams)

    async def __aexit__(self, *exc: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the host is checked for each, whatever the connection was opened for."""
        target: bytes = scope["raw_path"]
        authority = b""
        if not target.startswith(b"/"):
            url = split_target(target.decode("ascii"))
            authority, target = (url[1].encode(), url[2].encode()) if url else (b"?", b"/")
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if not authority and len(hosts) == 1:
            authority = hosts[0]
        default_port = 443 if scope["scheme"] == "https" else 80
        parsed = split_authority(authority.decode("latin-1"), default_port)
        route = None
        if parsed is not None:
            find = self._table.find if scope["scheme"] == "https" else self._table.find_plain
            route = find(*parsed)
        if not isinstance(route, LocalRoute):
            await _refuse(403, f"that host is blocked; {self._table.describe()}", scope, receive, send)
        elif route.upstream is None:
            scope = dict(scope, raw_path=target, path=target.decode("ascii"))
            await self._files(scope, receive, send)
        elif _DEVIOUS.search(target) or not target.startswith(route.prefix.encode()):
            text = f"a container may call only {route.prefix}… of {route.host}"
            await _refuse(403, text, scope, receive, send)
        else:
            await self._forward(route.upstream, target, authority, scope, receive, send)

    async def _forward(
        self, upstream: str, target: bytes, authority: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = [(k, v) for k, v in scope["headers"] if k not in _HOP_BY_HOP and not _OURS.fullmatch(k)]
        headers += [(b"host", authority), (b"x-forwarded-proto", scope["scheme"].encode())]
        names = {name for name, _ in scope["headers"]}
        has_body = b"content-length" in names or b"transfer-encoding" in names
        query: bytes = scope["query_string"]
        base = httpx.URL(upstream)
        url = base.copy_with(raw_path=base.raw_path.rstrip(b"/") + target + (b"?" + query if query else b""))
        told = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if not told.isdigit() or int(told[:20]) > self._max_body_bytes:
                raise _TooLargeError
            body: AsyncIterator[bytes] | bytes | None = _body(receive, self._max_body_bytes) if has_body else None
            if body is not None and b"content-length" in names and int(told) <= _KEPT_BYTES:
                body = b"".join([piece async for piece in _body(receive, self._max_body_bytes)])
            response = await self._send(scope["method"], url, headers, body)
        except _TooLargeError:
            with suppress(ConnectionError, TimeoutError):
                async for _ in _body(receive, None):
                    pass
            text = f"the request is larger than the {self._max_body_bytes} bytes that the results gateway takes"
            await _refuse(413, text, scope, receive, send)
            return
        except (httpx.HTTPError, TimeoutError, ConnectionError) as e:
            log.info("forwarding a container's %s failed: %s", scope["method"], type(e).__name__)
            text = "the results gateway cannot be reached now; send the request again"
            await _refuse(504 if isinstance(e, httpx.TimeoutException) else 502, text, scope, receive, send)
            return
        try:
            answer = [(k.lower(), v) for k, v in response.headers.raw if k.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": answer})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()

    async def _send(
        self, method: str, url: httpx.URL, headers: list[tuple[bytes, bytes]], body: AsyncIterator[bytes] | bytes | None
    ) -> httpx.Response:
        assert self._client is not None
        deadline = asyncio.get_running_loop().time() + self._patience_s
        pause = 0.1
        while True:
            request = httpx.Request(method, url, headers=headers, content=body)
            try:
                response = await self._client.send(request, stream=True)
                late = asyncio.get_running_loop().time() + pause > deadline
                if late or not _no_gateway(response) or not (body is None or isinstance(body, bytes)):
                    return response
                await response.aclose()
            except (httpx.ConnectError, httpx.ConnectTimeout):
                # Not one byte of the request was taken or sent, so trying again cannot deliver it twice.
                if asyncio.get_running_loop().time() + pause > deadline:
                    raise
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # A replica died with the request. The gateway stores a result once and answers a second POST as the
                # first, so a body that is still here may be sent again.
                if not (body is None or isinstance(body, bytes)):
                    raise
                if asyncio.get_running_loop().time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)


def _no_gateway(response: httpx.Response) -> bool:
    """Say whether a load balancer that knows of no living gateway has answered in its place.

    The gateway itself speaks of its errors in problem documents, and only in these.
    """
    kind = response.headers.get("content-type", "").partition(";")[0].strip()
    return response.status_code in _AWAY and kind != "application/problem+json"


async def _body(receive: Receive, limit: int | None) -> AsyncIterator[bytes]:
    more, left = True, limit
    while more:
        async with asyncio.timeout(_STALL_S):
            message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the container went away in the middle of its request")
        if left is not None:
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLargeError
        if message.get("body"):
            yield message["body"]
        more = message.get("more_body", False)


async def _refuse(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    response = PlainTextResponse(f"mhs-ray: {text}\n", status, headers={"connection": "close"})
    await response(scope, receive, send)
