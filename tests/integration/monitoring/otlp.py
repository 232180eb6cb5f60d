"""A tiny OpenTelemetry collector: takes OTLP over HTTP and keeps what it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """A span as it came. seconds: how long it is."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    seconds: float
    attributes: dict[str, str | int | bool]
    failed: bool


@dataclass
class Collector:
    url: str = ""
    spans: dict[str, Seen] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    raw: list[bytes] = field(default_factory=list)

    def by_name(self, trace: str) -> dict[str, Seen]:
        return {s.name: s for s in self.spans.values() if s.trace == trace}


@contextmanager
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            found.tokens.add(self.headers.get("authorization", ""))
            found.raw.append(body)
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = next(a.value.string_value for a in part.resource.attributes if a.key == "service.name")
                for span in (s for scope in part.scope_spans for s in scope.spans):
                    values = {
                        a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in span.attributes
                    }
                    found.spans[span.span_id.hex()] = Seen(
                        service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9, values, span.status.code == 2,
                    )  # fmt: skip
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
