"""Techcyte's side of the results API as a real HTTP server on loopback, with faults on demand.

It appends, as Techcyte does: what is posted twice is there twice.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["ok", "500", "500 after storing", "hang", "hang after storing", "reset", "401", "422", "429", "503"]


class FakeTechcyte:
    """faults: asked for each POST and PATCH what to do; a hang lasts `hang_s`."""

    def __init__(self, hang_s: float) -> None:
        self.faults: Callable[[], Fault] = lambda: "ok"
        self.look_status = 200
        self.hang_s = hang_s
        self.evaluations: list[dict[str, Any]] = []
        self.stored: list[tuple[str, str, dict[str, Any]]] = []  # task, token, body
        self.triage: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self._lock = threading.Lock()
        self.url = ""

    def script(self, *faults: Fault) -> None:
        """Do these in turn, then no more faults."""
        rest = list(faults)
        self.faults = lambda: rest.pop(0) if rest else "ok"

    def times(self) -> Counter[tuple[str, str]]:
        """Return how often each (task, scan) has a result here."""
        with self._lock:
            return Counter((task, scan["scanId"]) for task, _, body in self.stored for scan in body["scanResults"])

    def store(self, task: str, token: str, body: dict[str, Any]) -> None:
        with self._lock:
            self.stored.append((task, token, body))
            for scan in body["scanResults"]:
                report = dict(scan.get("results") or {})
                details: dict[str, Any] = {}
                if isinstance(report.get("external_url"), str):
                    details["external_url"] = report.pop("external_url")
                details["report"] = report
                if body.get("caseResults") is not None:
                    details["caseReport"] = body["caseResults"]
                number = len(self.evaluations) + 1
                self.evaluations.append(
                    {"id": number, "sample_id": 7, "case_id": 1, "task_id": int(task), "details": details}
                )


def _handler(fake: FakeTechcyte) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _answer(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _change(self, apply: Callable[[str, str, dict[str, Any]], None], status: int) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            task, token = self.path.rsplit("/", 1)[1], self.headers["Authorization"].removeprefix("Bearer ")
            with fake._lock:
                fake.requests += 1
                fault = fake.faults()
            if fault in ("ok", "500 after storing", "hang after storing"):
                apply(task, token, body)
            if fault.startswith("hang"):
                time.sleep(fake.hang_s)
            elif fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            elif fault != "ok":
                headers = {"Retry-After": "1"} if fault in ("429", "503") else {}
                self._answer(int(fault[:3]), {"message": f"no: {token}"}, headers)
                return
            self._answer(status)

        def do_POST(self) -> None:
            self._change(fake.store, 201)

        def do_PATCH(self) -> None:
            self._change(lambda task, _t, body: fake.triage.setdefault(task, {}).update(body), 204)

        def do_GET(self) -> None:
            task = self.path.rsplit("/", 1)[1]
            with fake._lock:
                found = [e for e in fake.evaluations if str(e["task_id"]) == task]
            self._answer(fake.look_status, found)

    return Handler


@contextmanager
def fake_techcyte(hang_s: float = 1.0) -> Iterator[FakeTechcyte]:
    """Run one for as long as the block lasts."""
    fake = FakeTechcyte(hang_s)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...  # a client that went away

    server = Server(("127.0.0.1", 0), _handler(fake))
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
