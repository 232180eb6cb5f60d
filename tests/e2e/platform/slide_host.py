"""A storage on loopback that serves slides as S3 does, and in every wrong way."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_DENIED = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@dataclass
class SlideHost:
    """base: URL without the last slash. files: what ``/ok/NAME`` serves; asked: requests by path, without query."""

    base: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    stalled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        """Return a URL that looks presigned and never looks expired."""
        return f"{self.base}{path}?X-Amz-Signature=s3cr3tsignature0123456789&X-Amz-Credential=AKIAEXAMPLE"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: SlideHost

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.host.asked[path] += 1
        kind, _, name = path[1:].partition("/")
        if kind == "ok" and name in self.host.files:
            self._file(self.host.files[name])
        elif kind == "slow" and name in self.host.files:
            time.sleep(1)
            self._file(self.host.files[name])
        elif kind == "expired":
            self._answer(403, _EXPIRED)
        elif kind == "forbidden":
            self._answer(403, _DENIED)
        elif kind == "stall":
            self._begin(self.host.files[name], 100)
            self.host.stalled.release()
            self.host.ended.wait(300)
            self.close_connection = True
        elif kind == "short":
            data = self.host.files[name]
            self._begin(data, len(data) // 2)
            self.close_connection = True
        else:
            self._answer(404, "<Error><Code>NoSuchKey</Code><Message>The key does not exist.</Message></Error>")

    def _begin(self, data: bytes, sent: int) -> None:
        """Announce all of `data` and send only its beginning."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:sent])
        self.wfile.flush()

    def _file(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        last = min(int(wanted[2] or len(data)), len(data) - 1) if wanted else len(data) - 1
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("ETag", f'"{hash(data) & 0xFFFFFFFF:x}"')
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def _answer(self, status: int, text: str) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@contextlib.contextmanager
def slide_host() -> Iterator[SlideHost]:
    """Serve until the end of the block."""
    host = SlideHost()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"host": host}))
    server.daemon_threads = True
    host.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
