"""A slow line before a server: a proxy for TCP that makes every request wait its round trip and shares one bandwidth.

It is a process of its own (``python -m mhs_ray.bench._tile_link PORT LATENCY_S BYTES_PER_S``), so that carrying bytes
takes no turns from the reader that is measured. It prints its port and ends with its standard input.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from mhs_ray.bench._line import Line

_PIECE: Final = 64 << 10
_READY_WITHIN_S: Final = 30.0


@contextmanager
def slow_line(port: int, *, latency_s: float = 0.02, bytes_per_s: float = 50e6) -> Iterator[int]:
    """Yield a port on loopback that leads to `port` there over a line of this round trip and bandwidth."""
    words = [sys.executable, "-m", "mhs_ray.bench._tile_link", str(port), str(latency_s), str(bytes_per_s)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy:
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        try:
            yield int(proxy.stdout.readline())
        finally:
            proxy.stdin.close()
            try:
                proxy.wait(5)
            except subprocess.TimeoutExpired:
                proxy.kill()


def _ask(client: socket.socket, server: socket.socket, latency_s: float) -> None:
    """Carry requests. The first one waits for the connection's own round trip, too."""
    wait = 2 * latency_s
    with suppress(OSError):
        while data := client.recv(_PIECE):
            time.sleep(wait)
            wait = latency_s
            server.sendall(data)
    with suppress(OSError):
        server.shutdown(socket.SHUT_WR)


def _answer(server: socket.socket, client: socket.socket, line: Line) -> None:
    """Carry answers at the line's pace; ends both connections when either end is gone."""
    with suppress(OSError):
        while data := server.recv(_PIECE):
            line.send(len(data))
            client.sendall(data)
    for end in (client, server):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def _serve(listener: socket.socket, port: int, latency_s: float, line: Line) -> None:
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", port), _READY_WITHIN_S)
        except OSError:
            client.close()
            continue
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_ask, args=(client, server, latency_s), daemon=True).start()
        threading.Thread(target=_answer, args=(server, client, line), daemon=True).start()


def main(arguments: list[str]) -> int:
    """Carry until standard input ends."""
    port, latency_s, bytes_per_s = int(arguments[0]), float(arguments[1]), float(arguments[2])
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        args = (listener, port, latency_s, Line(bytes_per_s))
        threading.Thread(target=_serve, args=args, daemon=True).start()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
