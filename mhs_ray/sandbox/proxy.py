"""The only way out of a container: a proxy on its loopback that knows an exact list of hosts.

It serves CONNECT and plain HTTP on port 3128, and on 443 and 80 the clients that ignore proxy variables (their hosts
file sends every listed name to 127.0.0.1). Local hosts are served here; the rest is dialled from the node, at an
address that was checked, and spliced. It runs in its own thread and event loop: heavy transfers disturb nobody.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Final

from mhs_ray.domain.errors import SandboxError
from mhs_ray.sandbox.dial import Resolve, dial, resolve_by_system, splice
from mhs_ray.sandbox.http import HttpServer
from mhs_ray.sandbox.peek import PeekError, RequestHead, peek_head, peek_server_name
from mhs_ray.sandbox.routes import (
    PROXY_PORT,
    DirectRoute,
    LocalRoute,
    Route,
    RouteTable,
    split_authority,
    split_target,
)

log = logging.getLogger(__name__)

OnDenied = Callable[[str], None]
"""Called with ``host:port`` and a reason, once per target; holds nothing secret."""

_UNRECOGNIZED_NAME: Final = b"\x15\x03\x01\x00\x02\x02\x70"  # TLS alert, fatal, unrecognized_name (RFC 6066)
_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"host"})
_REPORTED: Final = 50


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """connections: served at once, more wait in the kernel's queue; head_s: for a request head or TLS hello;
    idle_s: without a byte in either direction of a spliced connection."""

    connections: int = 256
    head_s: float = 10
    dial_s: float = 15
    idle_s: float = 1800


class Proxy:
    """Serves the way out on sockets that listen in a container's network namespace.

    server: serves the local hosts; its TLS context comes from `tls`.
    """

    def __init__(
        self,
        table: RouteTable,
        server: HttpServer,
        tls: ssl.SSLContext,
        on_denied: OnDenied,
        limits: ProxyLimits | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._table, self._server, self._tls = table, server, tls
        self._on_denied = on_denied
        self._limits = limits or ProxyLimits()
        self._resolve = resolve or resolve_by_system
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._thread: Thread | None = None
        self.denied: Counter[str] = Counter()

    def start(self, sockets: Mapping[int, socket.socket]) -> None:
        """Serve `sockets` (port → non-blocking listener), whose owner this becomes. Raises SandboxError."""
        ready = Event()
        failures: list[BaseException] = []

        async def serve() -> None:
            self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
            slots = asyncio.Semaphore(self._limits.connections)
            async with self._server:
                ready.set()
                await asyncio.gather(*(self._accept(s, port, slots) for port, s in sockets.items()))

        def run() -> None:
            try:
                asyncio.run(serve())
            except asyncio.CancelledError:
                pass
            except BaseException as e:
                log.exception("the sandbox proxy ended")
                failures.append(e)
            finally:
                for listener in sockets.values():
                    listener.close()
                ready.set()

        self._thread = Thread(target=run, name="mhs-sandbox-proxy", daemon=True)
        self._thread.start()
        ready.wait()
        if failures:
            raise SandboxError(f"the sandbox's proxy cannot start: {failures[0]}")

    def stop(self) -> None:
        """End every connection and the thread. Nothing happens a second time."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with suppress(RuntimeError):  # the loop is closed already
            if self._main is not None:
                loop.call_soon_threadsafe(self._main.cancel)
        thread.join(timeout=10)
        self._loop = self._thread = None

    async def _accept(self, listener: socket.socket, port: int, slots: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        while True:
            await slots.acquire()
            try:
                conn, _ = await loop.sock_accept(listener)
            except OSError as e:  # out of descriptors: keep serving those that are there
                slots.release()
                log.warning("the sandbox proxy cannot take a connection: %s", e)
                await asyncio.sleep(0.2)
                continue
            task = asyncio.create_task(self._serve(conn, port))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: slots.release())

    async def _serve(self, conn: socket.socket, port: int) -> None:
        with conn:
            try:
                conn.setblocking(False)
                conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if port == PROXY_PORT:
                    await self._serve_proxy(conn)
                elif port == 80:
                    await self._serve_plain(conn, await self._head(conn))
                else:
                    await self._serve_tls(conn, port)
            except (OSError, TimeoutError, PeekError) as e:
                log.debug("a sandbox connection ended: %s", e)
            except Exception:
                log.exception("serving a sandbox connection failed")

    async def _head(self, conn: socket.socket) -> RequestHead | None:
        try:
            async with asyncio.timeout(self._limits.head_s):
                return await peek_head(conn)
        except TimeoutError:
            await self._answer(conn, 408, "Request Timeout", "the request head took too long")
        except PeekError as e:
            await self._answer(conn, 400, "Bad Request", str(e))
        return None

    async def _serve_proxy(self, conn: socket.socket) -> None:
        head = await self._head(conn)
        if head is None:
            return
        if head.method != "CONNECT":
            await self._serve_plain(conn, head)
            return
        target = split_authority(head.target)
        route = self._table.find(*target) if target else None
        if route is None:
            await self._deny(conn, head.target)
            return
        upstream = None
        if isinstance(route, DirectRoute):
            upstream = await self._dial(conn, route)
            if upstream is None:
                return
        try:
            await asyncio.get_running_loop().sock_recv(conn, head.size)  # was peeked: all of it is there
            await asyncio.get_running_loop().sock_sendall(conn, b"HTTP/1.1 200 Connection established\r\n\r\n")
            if (isinstance(route, LocalRoute) or route.tls) and not await self._names(conn, route):
                return
            await self._pass_on(conn, route, upstream)
        finally:
            if upstream is not None:
                upstream.close()

    async def _serve_tls(self, conn: socket.socket, port: int) -> None:
        async with asyncio.timeout(self._limits.head_s):
            name = await peek_server_name(conn)
        if name is None:
            return
        route = self._table.find(name, port)
        if route is None or (isinstance(route, DirectRoute) and not route.tls):
            await self._deny_tls(conn, f"{name or '(no server name)'}:{port}")
            return
        if isinstance(route, LocalRoute):
            await self._pass_on(conn, route, None)
            return
        upstream = await self._dial(None, route)
        if upstream is None:
            await asyncio.get_running_loop().sock_sendall(conn, _UNRECOGNIZED_NAME)
            return
        with upstream:
            await self._pass_on(conn, route, upstream)

    async def _serve_plain(self, conn: socket.socket, head: RequestHead | None) -> None:
        if head is None:
            return
        url = split_target(head.target)
        if url is None and not head.target.startswith("/"):
            await self._deny(conn, head.target)
            return
        hosts = head.values(b"host")
        authority = url[1] if url else (hosts[0] if len(hosts) == 1 else "")
        target = split_authority(authority, default_port=80)
        route = None
        if target is not None and (url is None or url[0] == "http"):
            route = self._table.find_plain(*target)
        if route is None:
            await self._deny(conn, authority or head.target)
        elif isinstance(route, LocalRoute):
            await self._server.serve(conn, None)
        else:
            upstream = await self._dial(conn, route)
            if upstream is None:
                return
            with upstream:
                # One request a connection: a second one could name another host behind the same address.
                path = url[2] if url else head.target
                lines = [f"{head.method} {path} HTTP/1.1".encode(), f"Host: {authority}".encode(), b"Connection: close"]
                for name, value in head.headers:
                    if name.lower() not in _HOP_BY_HOP and not name.lower().startswith(b"proxy-"):
                        lines.append(name + b": " + value)
                loop = asyncio.get_running_loop()
                await loop.sock_recv(conn, head.size)
                await loop.sock_sendall(upstream, b"\r\n".join(lines) + b"\r\n\r\n")
                await splice(conn, upstream, self._limits.idle_s)

    async def _names(self, conn: socket.socket, route: Route) -> bool:
        """Whether the TLS hello names the host that CONNECT named, or none at all."""
        async with asyncio.timeout(self._limits.head_s):
            name = await peek_server_name(conn)
        if name is None:
            return False
        if name.lower().removesuffix(".") in ("", route.host):
            return True
        await self._deny_tls(conn, f"{name}:{route.port} (TLS name) through {route.host}")
        return False

    async def _pass_on(self, conn: socket.socket, route: Route, upstream: socket.socket | None) -> None:
        if isinstance(route, LocalRoute):
            await self._server.serve(conn, self._tls)
        elif upstream is not None:
            await splice(conn, upstream, self._limits.idle_s)

    async def _dial(self, conn: socket.socket | None, route: DirectRoute) -> socket.socket | None:
        """Return a connection to `route`; else tell `conn`, if that speaks HTTP, and return None."""
        private = f"{route.host}:{route.port} (resolves to a non-public address)"
        upstream = await dial(route, self._resolve, self._limits.dial_s, lambda: self._report(private))
        if upstream is None and conn is not None:
            await self._answer(conn, 502, "Bad Gateway", f"{route.host} cannot be reached from this node")
        return upstream

    async def _deny(self, conn: socket.socket, target: str) -> None:
        self._report(target)
        text = f"mhs-ray: {_printable(target)} is blocked; {self._table.describe()}"
        await self._answer(conn, 403, "Forbidden", text)

    async def _deny_tls(self, conn: socket.socket, target: str) -> None:
        self._report(target)
        await asyncio.get_running_loop().sock_sendall(conn, _UNRECOGNIZED_NAME)

    def _report(self, target: str) -> None:
        target = _printable(target)
        new = target not in self.denied
        if new and len(self.denied) >= _REPORTED:
            target = "other targets"
            new = target not in self.denied
        self.denied[target] += 1
        if new:
            try:
                self._on_denied(target)
            except Exception:
                log.exception("the report of a blocked connection failed")

    async def _answer(self, conn: socket.socket, status: int, phrase: str, text: str) -> None:
        body = (text + "\n").encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(conn, head.encode() + body)
        # Take what the client has sent so far: closing over unread bytes would reset the connection under the answer.
        conn.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(1):
                while await loop.sock_recv(conn, 1 << 16):
                    pass


def _printable(text: str) -> str:
    """A target as a container wrote it, safe for a log: host and port only, no path, no query, no user info."""
    text = text.partition("://")[2] or text
    text = text.split("/", 1)[0].split("?", 1)[0]
    return "".join(c if " " <= c <= "~" else "?" for c in text.rpartition("@")[2])[:200] or "(nothing)"
