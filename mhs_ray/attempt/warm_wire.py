"""Lines of JSON over a local socket: between an attempt and a warm container's host, and between host and container."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import Any, Final

MAX_LINE: Final = 4 << 20
_SEND_S: Final = 30


class Wire:
    """One connection. `send` from any thread; `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._buffer, self._lock = sock, bytearray(), threading.Lock()
        sock.setblocking(True)
        # Of sending alone: whoever does not read must not hold us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message; returns whether the other side can have it."""
        try:
            with self._lock:
                self._sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except OSError:
            self._end()  # half a line may have gone out: nothing after it could be read
            return False
        return True

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next message, None when there will be none. Raises TimeoutError.

        What is no JSON object, or longer than 4 MiB, ends the connection: the other side can be anybody.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                return None
            try:
                if not select.select([self._sock], [], [], timeout_s)[0]:
                    raise TimeoutError
                more = self._sock.recv(1 << 16)
            except TimeoutError:
                raise
            except (OSError, ValueError):  # closed by another thread
                return None
            if not more:
                return None
            self._buffer += more
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """End it, also under a thread that receives."""
        self._end()
        self._sock.close()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


def listen(folder: Path, name: str, mode: int) -> socket.socket:
    """Return a listening socket ``folder/name``; a path longer than the kernel takes goes by the folder's handle."""

    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        (folder / name).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"/proc/self/fd/{handle}/{name}")
        (folder / name).chmod(mode)
        listener.listen(8)
        return listener
    finally:
        os.close(handle)


def connect(folder: Path, name: str, timeout_s: float) -> Wire:
    """Connect to ``folder/name``. Raises OSError."""

    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(f"/proc/self/fd/{handle}/{name}")
        return Wire(sock)
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(handle)
