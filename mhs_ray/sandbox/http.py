"""Serves HTTP/1.1 on sockets that somebody else accepted, with uvicorn's own protocol and a limit on slow heads."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from types import TracebackType
from typing import Any, Final, Protocol

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from mhs_ray.sandbox.peek import MAX_HEAD

_KEEP_ALIVE_S: Final = 75
_FAREWELL_S: Final = 1.0  # for requests to notice that their connection is gone

_quiet = logging.getLogger(__name__ + ".protocol")
_quiet.setLevel(logging.ERROR)  # a container can send any number of malformed requests
_quiet.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)))


class Application(Protocol):
    """An ASGI application that holds resources while it is entered."""

    async def __aenter__(self) -> ASGIApp:
        """Start; return what serves requests."""

    async def __aexit__(self, *exc: object) -> None:
        """Let go of everything."""


class HttpServer:
    """Serves `application` on accepted sockets, in the event loop it is entered in.

    head_s: seconds for a whole request head (and the TLS handshake).
    """

    def __init__(self, application: Application, head_s: float = 10) -> None:
        self._application = application
        self._head_s = head_s
        self._state = ServerState()
        self._config: uvicorn.Config | None = None

    async def __aenter__(self) -> HttpServer:
        app = await self._application.__aenter__()
        self._config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        self._config.load()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in list(self._state.connections):
            transport = connection.transport
            if transport is not None:
                transport.abort()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=_FAREWELL_S)
        await self._application.__aexit__(kind, error, trace)

    async def serve(self, conn: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve requests on `conn`, which this takes over, until either side closes it.

        Raises OSError when the TLS handshake fails.
        """
        loop = asyncio.get_running_loop()
        assert self._config is not None
        config = self._config

        def factory() -> _Connection:
            return _Connection(config, self._state, self._head_s, loop)

        timeout = self._head_s if tls is not None else None
        own = socket.socket(fileno=conn.detach())
        transport, protocol = await loop.connect_accepted_socket(
            factory, own, ssl=tls, ssl_handshake_timeout=timeout, ssl_shutdown_timeout=timeout
        )
        try:
            await protocol.closed
        finally:
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()


class _Connection(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for a request head without end."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, head_s: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, state, {}, loop)
        self.access_log = False  # its lines would hold signed queries
        self.logger = _quiet
        self.closed: asyncio.Future[None] = loop.create_future()
        self._head_s = head_s
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._head_s, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()
