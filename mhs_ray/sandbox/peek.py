"""Look at what a client sends first without taking it: an HTTP request head, or the server name of a TLS hello.

Nothing is consumed, so the socket can be handed on, untouched, to whoever serves it.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import Final

MAX_HEAD: Final = 16 << 10
"""A request head or TLS hello above this is refused."""

_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.[01]")


class PeekError(Exception):
    """What came is too long, malformed, or ended early."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The first lines of an HTTP/1.1 request. size: bytes up to and with the blank line."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    size: int

    def values(self, name: bytes) -> list[str]:
        """Return every value of this header."""
        return [v.decode("latin-1") for k, v in self.headers if k.lower() == name]


async def peek_head(conn: socket.socket) -> RequestHead | None:
    """Return the request head that waits in `conn`, None if the client went away first. Raises PeekError."""
    size = 0
    while True:
        data = await _peek(conn, size + 1)
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            return parse_head(data[:end])
        if len(data) <= size:
            return None
        size = len(data)
        if size >= MAX_HEAD:
            raise PeekError("the request head is too long")


def parse_head(data: bytes) -> RequestHead:
    """Parse a request head without its blank line. Raises PeekError."""
    first, *rest = data.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise PeekError("this is no HTTP/1.1 request")
    headers = []
    for field in rest:
        name, colon, value = field.partition(b":")
        if not colon or not name or name.strip() != name or b"\n" in field or b"\0" in field:
            raise PeekError("a header line is malformed")
        headers.append((name, value.strip()))
    return RequestHead(line[1].decode(), line[2].decode(), tuple(headers), len(data) + 4)


async def peek_server_name(conn: socket.socket) -> str | None:
    """Return the name that the TLS hello in `conn` asks for: "" for none, None if the client left. Raises PeekError."""
    size = 0
    while True:
        data = await _peek(conn, size + 1)
        hello = _handshake(data)
        if hello is not None:
            return server_name(hello)
        if len(data) <= size:
            return None
        size = len(data)
        if size >= MAX_HEAD:
            raise PeekError("the TLS hello is too long")


def _handshake(data: bytes) -> bytes | None:
    """Return the body of the ClientHello in TLS records `data`, None while it is incomplete."""
    message = b""
    while True:
        if data[:1] not in (b"", b"\x16") or data[1:2] not in (b"", b"\x03"):
            raise PeekError("this is no TLS handshake")
        if len(data) < 5:
            return None
        length = int.from_bytes(data[3:5], "big")
        if not 0 < length <= 1 << 14:
            raise PeekError("this is no TLS handshake")
        message += data[5 : 5 + length]
        if message[:1] not in (b"", b"\x01"):
            raise PeekError("this is no TLS hello")
        if len(message) >= 4 and len(message) - 4 >= int.from_bytes(message[1:4], "big"):
            return message[4 : 4 + int.from_bytes(message[1:4], "big")]
        if len(data) < 5 + length:
            return None
        data = data[5 + length :]


def server_name(hello: bytes) -> str:
    """Return the host_name of a ClientHello body (RFC 8446 4.1.2, RFC 6066 3), "" if it has none. Raises PeekError."""
    reader = _Reader(hello)
    reader.take(34)  # version, random
    reader.vector(1)  # session
    reader.vector(2)  # ciphers
    reader.vector(1)  # compression
    if not reader.rest:
        return ""
    extensions = _Reader(reader.vector(2))
    while extensions.rest:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == 0:
            names = _Reader(_Reader(body).vector(2))
            name_type, name = names.number(1), names.vector(2)
            if name_type == 0 and not names.rest and name.isascii():
                return name.decode()
            raise PeekError("the server name of the TLS hello is malformed")
    return ""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, size: int) -> bytes:
        if len(self.rest) < size:
            raise PeekError("the TLS hello is cut short")
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> bytes:
        return self.take(self.number(length_size))


async def _peek(conn: socket.socket, at_least: int) -> bytes:
    """Return what waits in `conn` once there are `at_least` bytes, or fewer when the client sends no more."""
    loop = asyncio.get_running_loop()
    # The kernel wakes us only when there is more than we saw: no polling, however slowly a client drips.
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, at_least)
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(conn.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(conn.fileno())
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    try:
        return conn.recv(MAX_HEAD, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
