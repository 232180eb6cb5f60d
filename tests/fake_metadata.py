"""A server that plays EC2's instance metadata, version 2: what a spot node asks for its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeMetadata:
    """notice: what it tells, None: nothing planned. down: answers to nothing. tokens: handed out and not ended."""

    def __init__(self) -> None:
        self.notice: dict[str, str] | None = None
        self.down = False
        self.tokens: set[str] = set()
        self.url = ""


@contextmanager
def fake_metadata() -> Iterator[FakeMetadata]:
    told = FakeMetadata()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            token = f"t{len(told.tokens)}"
            told.tokens.add(token)
            assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
            self._say(503 if told.down else 200, token)

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") not in told.tokens:
                self._say(401, "")
            elif told.down:
                self._say(503, "")
            elif self.path != "/latest/meta-data/spot/instance-action" or told.notice is None:
                self._say(404, "")
            else:
                self._say(200, json.dumps(told.notice))

        def _say(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_args: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
