"""Docker's attach call on a socket of our own.

The SDK reads the upgraded connection below http.client's buffer, so bytes that came together with the answer's
header would be lost; here nothing is. Output comes as frames: stream number, 3 zero bytes, length (big endian).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from mhs_ray.domain.errors import EngineError
from mhs_ray.ports import Stream

_BLOCK: Final = 1 << 16
_HEADER: Final = struct.Struct(">BxxxL")
_NAMES: Final[dict[int, Stream]] = {1: "stdout", 2: "stderr"}


class Attachment:
    """All output of one container from the moment this is made; with `logs`, what the log driver kept before it."""

    def __init__(self, base_url: str, version: str, container_id: str, *, logs: bool, stream: bool) -> None:
        self._socket = _connect(base_url)
        query = f"stdout=1&stderr=1&logs={int(logs)}&stream={int(stream)}"
        request = (
            f"POST /v{version}/containers/{container_id}/attach?{query} HTTP/1.1\r\nHost: docker\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        )
        try:
            self._socket.settimeout(60)
            self._socket.sendall(request.encode())
            head = b""
            while b"\r\n\r\n" not in head:
                more = self._socket.recv(_BLOCK)
                if not more:
                    raise EngineError("docker", "attach", "the daemon closed the connection")
                head += more
            head, _, self._early = head.partition(b"\r\n\r\n")
            status = head.split(b"\r\n", 1)[0].decode("latin-1")
            if " 101 " not in f"{status} " and " 200 " not in f"{status} ":
                raise EngineError(
                    "docker", "attach", f"{status}: {self._early[:300].decode('utf-8', 'replace').strip()}"
                )
            self._socket.settimeout(None)
        except OSError as exc:
            self.close()
            raise EngineError("docker", "attach", str(exc)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up; the container goes on."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def pieces(self) -> Iterator[tuple[Stream, bytes]]:
        """Yield output in pieces of at most 64 KiB until it ends."""
        header = b""
        left = 0
        name: Stream = "stdout"
        block = self._early
        while True:
            while block:
                if left:
                    piece, block = block[:left], block[left:]
                    left -= len(piece)
                    yield name, piece
                    continue
                need = _HEADER.size - len(header)
                header, block = header + block[:need], block[need:]
                if len(header) == _HEADER.size:
                    number, left = _HEADER.unpack(header)
                    name = _NAMES.get(number, "stderr")
                    header = b""
            try:
                block = self._socket.recv(_BLOCK)
            except OSError:  # the daemon died; whether the container did is asked elsewhere
                return
            if not block:
                return


def _connect(base_url: str) -> socket.socket:
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
