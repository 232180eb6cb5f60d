"""Docker's attach and logs calls on a socket of our own.

The SDK reads the upgraded connection below http.client's buffer, so bytes that came together with the answer's
header would be lost; here nothing is. Output comes as frames: stream number, 3 zero bytes, length (big endian).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from mhs_ray.domain.errors import EngineError
from mhs_ray.ports import Stream

_BLOCK: Final = 1 << 16
_HEADER: Final = struct.Struct(">BxxxL")
_NAMES: Final[dict[int, Stream]] = {1: "stdout", 2: "stderr"}
_IDLE_S: Final = 0.25


class Frames:
    """The output of one container that an open connection to the daemon carries."""

    def __init__(self, connection: socket.socket, early: bytes) -> None:
        self._socket = connection
        self._block = early
        self._header = b""
        self._left = 0
        self._name: Stream = "stdout"

    def close(self) -> None:
        """Hang up; the container goes on."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def pieces(self, idle_s: float | None = None) -> Iterator[tuple[Stream, bytes]]:
        """Yield output in pieces of at most 64 KiB until it ends, or until none came for `idle_s`; then call again."""
        self._socket.settimeout(idle_s)
        while True:
            while self._block:
                if self._left:
                    piece, self._block = self._block[: self._left], self._block[self._left :]
                    self._left -= len(piece)
                    yield self._name, piece
                    continue
                need = _HEADER.size - len(self._header)
                self._header, self._block = self._header + self._block[:need], self._block[need:]
                if len(self._header) == _HEADER.size:
                    number, self._left = _HEADER.unpack(self._header)
                    self._name = _NAMES.get(number, "stderr")
                    self._header = b""
            try:
                self._block = self._socket.recv(_BLOCK)
            except OSError:  # idle, or the daemon died; whether the container did is asked elsewhere
                return
            if not self._block:
                return


def attach(base_url: str, version: str, container_id: str) -> Frames:
    """Return the output of a container from now on."""
    path = f"/v{version}/containers/{container_id}/attach?stream=1&stdout=1&stderr=1"
    return _ask(base_url, f"POST {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0")


def kept(base_url: str, version: str, container_id: str, limit: str = "") -> Frames:
    """Return what the log driver kept. limit: ``&since=…`` or ``&until=…`` with seconds since 1970."""
    path = f"/v{version}/containers/{container_id}/logs?stdout=1&stderr=1{limit}"
    return _ask(base_url, f"GET {path} HTTP/1.0")  # 1.0: the daemon then sends no chunks, but the bytes


def resume(base_url: str, version: str, container_id: str) -> Iterator[tuple[Stream, bytes]]:
    """Yield what the log driver kept of a running container and all that follows, without a gap or a repetition.

    Attached output has no timestamps. What was logged since the attachment was asked for is compared with what it
    carries first; only equal lines of that very moment cannot be told apart.
    """
    asked = f"{time.time_ns() / 1e9:.9f}"
    live = attach(base_url, version, container_id)
    try:
        with contextlib.closing(kept(base_url, version, container_id, f"&until={asked}")) as frames:
            yield from frames.pieces()
        window = {"stdout": bytearray(), "stderr": bytearray()}
        with contextlib.closing(kept(base_url, version, container_id, f"&since={asked}")) as frames:
            for stream, data in frames.pieces():
                window[stream] += data
                yield stream, data
        if any(window.values()):
            early = {"stdout": bytearray(), "stderr": bytearray()}
            for stream, data in live.pieces(_IDLE_S):
                early[stream] += data
                if all(len(early[s]) >= len(window[s]) for s in window):
                    break
            for name in _NAMES.values():
                rest = early[name][overlap(bytes(window[name]), bytes(early[name])) :]
                if rest:
                    yield name, bytes(rest)
        yield from live.pieces()
    finally:
        live.close()


def overlap(before: bytes, after: bytes) -> int:
    """Return how many bytes at the end of `before` are those at the beginning of `after`, as many as can be."""
    longest = min(len(before), len(after))
    at = len(before) - longest
    needle = after[:32]
    while (found := before.find(needle, at)) >= 0 and needle:
        if after.startswith(before[found:]):
            return len(before) - found
        at = found + 1
    return next((n for n in range(min(len(needle), longest), 0, -1) if before.endswith(after[:n])), 0)


def _ask(base_url: str, request: str) -> Frames:
    connection = connect(base_url)
    try:
        connection.sendall(f"{request}\r\nHost: docker\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(_BLOCK)
            if not more:
                raise EngineError("docker", "attach", "the daemon closed the connection")
            head += more
        head, _, early = head.partition(b"\r\n\r\n")
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] not in (["101"], ["200"]):
            raise EngineError("docker", "attach", f"{status}: {early[:300].decode('utf-8', 'replace').strip()}")
    except OSError as exc:
        connection.close()
        raise EngineError("docker", "attach", str(exc)) from None
    except BaseException:
        connection.close()
        raise
    return Frames(connection, early)


def connect(base_url: str) -> socket.socket:
    """Return a connection to the daemon. Raises EngineError."""
    url = urlsplit(base_url)
    try:
        if url.scheme in {"unix", "http+unix"}:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(60)
            connection.connect(f"/{url.netloc}{url.path}".replace("//", "/"))
            return connection
        if url.scheme in {"tcp", "http"} and url.hostname:
            return socket.create_connection((url.hostname, url.port or 2375), timeout=60)
    except OSError as exc:
        raise EngineError("docker", "attach", f"{base_url} does not answer ({exc.strerror})") from None
    raise EngineError("docker", "attach", f"{base_url} is no unix:// or tcp:// address of a Docker daemon on this node")
