"""A real HTTP server on loopback whose every answer can be made hostile."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mhs_ray.slides.demo import make_demo_slide

Answer = Callable[["Handler"], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""


@dataclass
class Storage:
    """Objects by path, and per path a function that answers instead. requests: (path, Range header) in order."""

    port: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def url(self, path: str, query: str = "X-Amz-Signature=SECRET") -> str:
        return f"http://127.0.0.1:{self.port}{path}?{query}"

    def put(self, path: str, data: bytes, etag: str = '"v1"') -> str:
        self.objects[path], self.etags[path] = data, etag
        return self.url(path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: Storage

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    @property
    def bare(self) -> str:
        return self.path.partition("?")[0]

    def do_GET(self) -> None:
        self.storage.requests.append((self.bare, self.headers.get("Range")))
        self.storage.answers.get(self.bare, serve)(self)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def begin(self, data: bytes, count: int) -> None:
        """Announce `data`, and send the first `count` bytes of it."""
        self.head(200, ETag='"v1"', Content_Length=len(data))
        self.wfile.write(data[:count])
        self.wfile.flush()

    def error(self, status: int, code: str, message: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.head(status, Content_Length=len(body), Content_Type="application/xml")
        self.wfile.write(body)

    def cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()


def serve(handler: Handler) -> None:
    """What S3 does: whole or one range, If-Range honoured."""
    data = handler.storage.objects.get(handler.bare)
    if data is None:
        handler.error(404, "NoSuchKey", "The specified key does not exist.")
        return
    etag = handler.storage.etags[handler.bare]
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if asked and handler.headers.get("If-Range", etag) == etag:
        first = int(asked[1])
        last = min(int(asked[2]) if asked[2] else len(data) - 1, len(data) - 1)
        if first >= len(data):
            handler.error(416, "InvalidRange", "no")
            return
        handler.head(206, ETag=etag, Content_Length=last - first + 1, Content_Range=f"bytes {first}-{last}/{len(data)}")
        handler.wfile.write(data[first : last + 1])
        return
    handler.head(200, ETag=etag, Content_Length=len(data), Last_Modified=formatdate(0, usegmt=True))
    handler.wfile.write(data)


@contextmanager
def running(certificate: Path | None = None) -> Iterator[Storage]:
    made = Storage()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"storage": made}))
    made.port = server.server_address[1]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture
def storage() -> Iterator[Storage]:
    with running() as made:
        yield made


@pytest.fixture
def secure_storage() -> Iterator[Callable[[Path], Storage]]:
    """A function from a PEM file (key and certificate) to a running storage with TLS."""
    with ExitStack() as stack:
        yield lambda certificate: stack.enter_context(running(certificate))


@pytest.fixture(scope="session")
def slide_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_demo_slide(tmp_path_factory.mktemp("slide") / "slide", 1300, 1100).path.read_bytes()


@pytest.fixture(scope="session")
def dicom() -> Path:
    path = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "sm_image.dcm"
    if not path.is_file():
        pytest.skip("the sample slide sm_image.dcm is not in ../shared/data")
    return path
