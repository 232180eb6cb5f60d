"""A real HTTP server on loopback whose answers a test writes down: what a client must cope with, on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """drop: close the connection without a word instead."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


Route = Callable[[Request], Answer]


def ok(document: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})


def problem(status: int, slug: str, detail: str) -> Answer:
    document = {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": detail, "errors": []}
    return ok(document, status)


def events(*blocks: str) -> Answer:
    return Answer(200, "".join(f"{b}\n\n" for b in blocks).encode(), {"Content-Type": "text/event-stream"})


class FakeApi:
    """routes: (method, path) → answers in turn, the last one for ever; or a function. seen: every request."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], list[Answer] | Route] = {}
        self.seen: list[Request] = []
        self.url = ""

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self.routes[method, path] = list(answers)

    def calls(self, method: str, path: str) -> list[Request]:
        return [r for r in self.seen if (r.method, r.path) == (method, path)]

    def answer(self, request: Request) -> Answer:
        self.seen.append(request)
        route = self.routes.get((request.method, request.path))
        if route is None:
            return problem(404, "not-found", f"there is no {request.path}")
        if callable(route):
            return route(request)
        return route.pop(0) if len(route) > 1 else route[0]


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    api = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {k.lower(): v for k, v in self.headers.items()}
            answer = api.answer(Request(self.command, parts.path, parse_qs(parts.query), headers, body))
            self.close_connection = True
            if answer.drop:
                return
            self.send_response(answer.status)
            for name, value in {
                "Content-Length": str(len(answer.body)),
                "Connection": "close",
                **answer.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def job(job_id: int = 1, state: str = "succeeded", attempt: int = 1, **changes: Any) -> dict[str, Any]:
    """A job as the API tells it."""
    return {
        "id": job_id, "state": state, "task_id": "7", "scan_row_id": 1, "scan_id": "1000000001",
        "algorithm_name": "A", "container_id": 1, "container_name": "C", "image_digest": "sha256:" + "0" * 64,
        "instance_type": "g4dn.xlarge", "priority": "clinical", "attempt": attempt, "node": None, "failure": None,
        "resources": {}, "created_by": "local", "created_at": "2026-01-31T12:00:00Z",
        "started_at": "2026-01-31T12:00:01Z", "ended_at": "2026-01-31T12:00:03Z", "queue_position": None, **changes,
    }  # fmt: skip
