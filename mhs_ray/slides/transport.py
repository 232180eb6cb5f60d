"""An httpx transport that puts a UrlPolicy into force and does not wait for ever.

The name is resolved once per connection, each address is judged, and the connection goes to a judged address: a name
that changes its mind in between (DNS rebinding) gains nothing. Redirects make new connections, so they are judged too.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import httpcore
import httpx

from mhs_ray.domain.redact import RedactUrls
from mhs_ray.slides.cancelling import LOOK_S, Cancelled, check, never
from mhs_ray.slides.url_guard import UrlPolicy

# Both libraries log what they do: httpx each URL with its signature, httpcore (at DEBUG) each Location header.
logging.getLogger("httpx").addFilter(RedactUrls())
logging.getLogger("httpcore").setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class Pace:
    """The slowest answer that is waited for: `min_bytes` in every `stall_s` seconds spent waiting.

    cancelled: asked meanwhile, and before each connection.
    """

    stall_s: float = 30.0
    min_bytes: int = 4096
    cancelled: Cancelled = never


class _PacedStream(httpcore.NetworkStream):
    """A stream whose peer must keep its pace, in headers as in the body: one byte a minute is a stall too."""

    def __init__(self, inner: httpcore.NetworkStream, pace: Pace) -> None:
        self._inner, self._pace = inner, pace
        self._waited, self._received = 0.0, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        pace = self._pace
        ends = time.monotonic() + (max(pace.stall_s - self._waited, 0.001) if timeout is None else timeout)
        while True:
            check(pace.cancelled)
            started = time.monotonic()
            left = min(ends - started, pace.stall_s - self._waited)
            try:
                data = self._inner.read(max_bytes, min(max(left, 0.001), LOOK_S))
            except httpcore.ReadTimeout:
                self._waited += time.monotonic() - started
                if left > LOOK_S:
                    continue
                raise
            self._waited += time.monotonic() - started
            self._received += len(data)
            if self._received >= pace.min_bytes:
                self._waited, self._received = 0.0, 0
            elif self._waited >= pace.stall_s:
                raise httpcore.ReadTimeout("the answer comes too slowly")
            return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._waited, self._received = 0.0, 0
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _PacedStream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._pace)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _GuardedBackend(httpcore.NetworkBackend):
    def __init__(self, policy: UrlPolicy, pace: Pace) -> None:
        self._policy, self._pace = policy, pace
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        error: Exception = httpcore.ConnectError(f"the name {host} has no address")
        for address in self._policy.addresses(host, port):
            check(self._pace.cancelled)
            try:
                stream = self._plain.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
            else:
                return _PacedStream(stream, self._pace)
        raise error

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("slides are not fetched over unix sockets")

    def sleep(self, seconds: float) -> None:
        self._plain.sleep(seconds)


_ERRORS: Final[tuple[tuple[type[Exception], type[httpx.TransportError]], ...]] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.NetworkError, httpx.ReadError),
)


def _mapped(error: Exception) -> Exception:
    for ours, theirs in _ERRORS:
        if isinstance(error, ours):
            return theirs(str(error))
    return error


class _Body(httpx.SyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise _mapped(error) from None

    def close(self) -> None:
        self._inner.close()


@cache
def _public_authorities() -> ssl.SSLContext:
    """The usual certificate authorities; loading them takes longer than asking a storage one question."""
    return httpx.create_ssl_context(trust_env=False)


class GuardedTransport(httpx.BaseTransport):
    """An httpx transport that connects only where `policy` allows, and only waits as long as `pace` says.

    httpx's own transport offers no way to pin the address it checked, hence httpcore's pool directly.
    """

    def __init__(self, policy: UrlPolicy, pace: Pace, tls: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or _public_authorities(),
            max_connections=8,
            network_backend=_GuardedBackend(policy, pace),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; redirects are followed by the caller, each one checked anew."""
        self._policy.check_url(str(request.url))
        assert isinstance(request.stream, httpx.SyncByteStream)
        url = request.url
        wire = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            answer = self._pool.handle_request(wire)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise _mapped(error) from None
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()
