"""Connections to listed hosts outside: to a checked address only, and spliced with the container's."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from mhs_ray.sandbox.routes import DirectRoute, IPAddress, address_allowed

log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → addresses as text."""


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Return the addresses that the node's own resolver gives."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]


async def dial(
    route: DirectRoute, resolve: Resolve, timeout_s: float, on_private: Callable[[], None]
) -> socket.socket | None:
    """Return a connection to a public (or listed) address of `route`, None when there is none to be had.

    The name is resolved once and the checked address itself is dialled: a name that changes meanwhile changes nothing.
    on_private: called when the name resolves to an address that is refused.
    """
    try:
        async with asyncio.timeout(timeout_s):
            addresses = [ipaddress.ip_address(text) for text in await resolve(route.host, route.port)]
            good = [address for address in addresses if address_allowed(address, route.networks)]
            if len(good) < len(addresses):
                on_private()
            for address in good:
                with suppress(OSError):
                    return await _connect(address, route.port)
    except (OSError, TimeoutError, ValueError) as e:
        log.debug("%s cannot be reached: %s", route.host, e)
    return None


async def _connect(address: IPAddress, port: int) -> socket.socket:
    upstream = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        upstream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(upstream, (str(address), port))
    except BaseException:
        upstream.close()
        raise
    return upstream


async def splice(left: socket.socket, right: socket.socket, idle_s: float) -> None:
    """Copy both ways until both ended, one failed, or no byte moved for `idle_s`; a slow reader slows its writer."""
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def copy(source: socket.socket, sink: socket.socket) -> None:
        nonlocal last
        while data := await loop.sock_recv(source, 1 << 17):
            last = loop.time()
            await loop.sock_sendall(sink, data)
            last = loop.time()
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    async def copy_both() -> None:
        await asyncio.gather(copy(left, right), copy(right, left))

    copies = asyncio.create_task(copy_both())
    try:
        while not copies.done():
            left_s = last + idle_s - loop.time()
            if left_s <= 0:
                return
            await asyncio.wait({copies}, timeout=left_s)
    finally:
        copies.cancel()
        with suppress(OSError, asyncio.CancelledError):
            await copies
