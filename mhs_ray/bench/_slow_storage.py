"""A storage behind a slow line: every answer waits its round trip, and all answers share one bandwidth."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from mhs_ray.bench._line import Line

_PIECE: Final = 64 << 10


@contextmanager
def slow_storage(path: Path, *, latency_s: float = 0.02, bytes_per_s: float = 50e6) -> Iterator[str]:
    """Yield the URL of `path` on a loopback server with S3's manners."""
    line, size = Line(bytes_per_s), path.stat().st_size

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

        def do_GET(self) -> None:
            time.sleep(latency_s)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]), size - 1) if asked and asked[2] else size - 1
            self.send_response(206 if asked else 200)
            self.send_header("ETag", '"bench"')
            self.send_header("Content-Length", str(last - first + 1))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            with path.open("rb") as file:
                file.seek(first)
                left = last - first + 1
                while left:
                    piece = file.read(min(_PIECE, left))
                    line.send(len(piece))
                    self.wfile.write(piece)
                    left -= len(piece)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A reader that has enough goes away."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/slide.svs"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
