"""What stands between a container and the results gateway, while that is away."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from mhs_ray.sandbox.local import LocalHosts
from mhs_ray.sandbox.routes import RouteTable, results_route

DONE = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull"
BALANCER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\nno\n"
NO_ROUTE = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\r\nno\n"
PROBLEM = b"HTTP/1.1 503 Busy\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}"


class Upstream:
    """Answers each connection's one request with the next of `answers`; b"": hangs up."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = list(answers)
        self.got: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self.answers:
            connection, _ = self._socket.accept()
            with connection:
                request = b""
                while not request.endswith(b"the results"):
                    request += connection.recv(65536)
                self.got.append(request)
                connection.sendall(self.answers.pop(0).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        self._socket.close()


def post(answers: list[bytes], patience_s: float = 20) -> tuple[int, list[bytes]]:
    """Post through a LocalHosts to a gateway that answers so; return the status and what the gateway got."""
    upstream = Upstream(answers)
    table = RouteTable([results_route("app.example.com", upstream.url)])
    statuses: list[int] = []
    scope = {
        "type": "http", "method": "POST", "scheme": "https", "raw_path": b"/api/v3/external/results/7",
        "query_string": b"", "headers": [(b"host", b"api.app.example.com"), (b"content-length", b"11")],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"the results", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def run() -> None:
        hosts = LocalHosts(table, None, connect_patience_s=patience_s)  # type: ignore[arg-type]  # no files are asked for
        async with hosts as app:
            await app(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(run())
    return statuses[0], upstream.got


def test_results_are_sent_again_until_a_gateway_takes_them() -> None:
    status, got = post([BALANCER, NO_ROUTE, b"", DONE])
    assert (status, len(got)) == (201, 4)
    assert all(request.endswith(b"\r\n\r\nthe results") for request in got)


def test_what_the_gateway_itself_says_is_the_answer() -> None:
    assert post([PROBLEM])[0] == 503


def test_patience_ends_with_what_was_said_last() -> None:
    status, got = post([BALANCER], patience_s=0.05)
    assert (status, len(got)) == (503, 1)
