"""What a hostile container tries, each from inside a real network namespace."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mhs_ray.sandbox.proxy import ProxyLimits
from mhs_ray.sandbox.routes import DirectRoute
from mhs_ray.sandbox.tls import AttemptCa

if TYPE_CHECKING:
    from tests.integration.sandbox.conftest import Gateway, Inside, Serve

API_HOST = "api.app.example.com"
ALLOWED = b"this container may reach only api.app.example.com:443, files.mhs.internal:443"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
UNRECOGNIZED_NAME = b"\x15\x03\x01\x00\x02\x02\x70"


def hello(name: str) -> bytes:
    """Return the first flight of a TLS client that asks for `name`."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "target",
    [
        "evil.example:443",
        f"{API_HOST}:22",
        f"{API_HOST}@evil.example:443",
        f"user:secret@{API_HOST}:443",
        f"evil.{API_HOST}:443",
        f"{API_HOST}.evil.example:443",
        f"{API_HOST}",
        "169.254.169.254:80",
        "[::1]:443",
        "[::ffff:127.0.0.1]:443",
        "127.0.0.1:443",
        "localhost:443",
        "0x7f000001:443",
        "2130706433:443",
        f"{API_HOST}%00.evil.example:443",
        "files.mhs.internal:80",
    ],
)
def test_connect_to_anything_unlisted_is_a_403_that_says_what_is_allowed(inside: Inside, target: str) -> None:
    answer = inside.ask(3128, f"CONNECT {target} HTTP/1.1\r\nHost: {API_HOST}:443\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert ALLOWED in answer
    assert b"secret" not in answer
    assert inside.denied == [target.rpartition("@")[2]]


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://169.254.169.254/latest/meta-data/",
        f"http://{API_HOST}@evil.example/",
        "http://127.0.0.1:8000/",
        f"https://{API_HOST}/api/v3/x",
        "ftp://files.mhs.internal/",
        "http://[::1",
        "http://[/",
        "*",
        "http://",
    ],
)
def test_a_plain_request_to_anything_unlisted_is_a_403(inside: Inside, gateway: Gateway, url: str) -> None:
    answer = inside.ask(3128, f"GET {url} HTTP/1.1\r\nHost: {API_HOST}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert gateway.requests == []
    assert len(inside.denied) == 1


def test_a_malformed_target_inside_tls_is_a_403_and_not_a_line_in_our_log(
    inside: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    client = ssl.create_default_context(cafile=str(inside.trust))
    for target in ("http://[::1", "http://evil.example/", "https://[/", "*"):
        with inside.connect(443) as conn, client.wrap_socket(conn, server_hostname=API_HOST) as tls:
            tls.sendall(f"GET {target} HTTP/1.1\r\nHost: evil\r\n\r\n".encode())
            assert tls.recv(12) == b"HTTP/1.1 403"
    assert caplog.records == []


def test_curl_meets_every_refusal_as_an_error(inside: Inside) -> None:
    assert "CONNECT tunnel failed, response 403" in inside.curl("https://evil.example/")
    assert "CONNECT tunnel failed, response 403" in inside.curl(f"https://{API_HOST}@169.254.169.254/")
    assert "Could not resolve host" in inside.curl("https://evil.example/", proxy=False)
    unreachable = inside.curl("http://169.254.169.254/", proxy=False)
    assert "Couldn't connect" in unreachable or "unreachable" in unreachable


def test_services_of_the_node_are_out_of_reach(inside: Inside, gateway: Gateway) -> None:
    with pytest.raises(ConnectionRefusedError):
        inside.connect(gateway.port)


def test_tls_for_an_unlisted_name_is_refused_with_an_alert(inside: Inside) -> None:
    assert inside.ask(443, hello("evil.example")) == UNRECOGNIZED_NAME
    assert inside.denied == ["evil.example:443"]


def test_a_tls_name_other_than_the_connect_host_is_refused(inside: Inside) -> None:
    data = f"CONNECT {API_HOST}:443 HTTP/1.1\r\n\r\n".encode() + hello("evil.example")
    answer = inside.ask(3128, data)
    assert answer.endswith(b"\r\n\r\n" + UNRECOGNIZED_NAME)
    assert inside.denied == [f"evil.example:443 (TLS name) through {API_HOST}"]


def test_bytes_that_are_no_tls_get_nothing(inside: Inside) -> None:
    assert inside.ask(443, b"GET / HTTP/1.1\r\n\r\n") == b""
    assert inside.ask(443, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00") == b""


def test_a_malformed_or_huge_head_is_a_400(inside: Inside) -> None:
    assert inside.ask(3128, b"\x00\x01\x02\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert inside.ask(3128, b"CONNECT a:443 HTTP/1.1\r\n" + b"x: y\r\n" * 4000).startswith(b"HTTP/1.1 400 ")


def test_denied_targets_are_told_once_and_only_so_many(inside: Inside) -> None:
    for i in range(70):
        for _ in range(2):
            inside.ask(3128, f"CONNECT evil{i}.example:443 HTTP/1.1\r\n\r\n".encode())
    assert len(inside.denied) == 51
    assert inside.denied[-1] == "other targets"
    assert inside.proxy.denied["evil0.example:443"] == 2


class TestDirectRoutes:
    """Hosts outside that an operator has listed."""

    @pytest.fixture
    def outside(self, tmp_path: Path) -> Iterator[int]:
        """The port of a TLS server on the node that speaks for ok.example and answers with what it is sent."""
        folder = tmp_path / "outside"
        folder.mkdir()
        context = AttemptCa.open(folder, ["ok.example"]).server_context(["ok.example"])
        listener = socket.create_server(("127.0.0.1", 0))

        def serve(conn: socket.socket) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(conn, server_side=True) as tls:
                while data := tls.recv(65536):
                    tls.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()

    @pytest.mark.parametrize("through", ["CONNECT", "SNI"])
    def test_bytes_of_a_listed_host_pass_through_untouched(
        self, serve: Serve, outside: int, tmp_path: Path, through: str
    ) -> None:
        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["127.0.0.1"]

        inside = serve(direct=(DirectRoute("ok.example", outside, networks=LOOPBACK),), resolve=resolve)
        with inside.connect(3128 if through == "CONNECT" else outside) as conn:
            if through == "CONNECT":
                conn.sendall(f"CONNECT ok.example:{outside} HTTP/1.1\r\n\r\n".encode())
                assert conn.recv(100) == b"HTTP/1.1 200 Connection established\r\n\r\n"
            client = ssl.create_default_context(cafile=str(tmp_path / "outside" / "ca.pem"))
            with client.wrap_socket(conn, server_hostname="ok.example") as tls:
                data = b"0123456789abcdef" * 8192
                got = b""
                sender = threading.Thread(target=tls.sendall, args=(data,))
                sender.start()
                while len(got) < len(data):
                    got += tls.recv(65536)
                sender.join()
                assert got == data
        assert inside.denied == []

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe"],
    )
    def test_a_listed_name_that_resolves_to_a_private_address_is_not_dialled(self, serve: Serve, address: str) -> None:
        async def resolve(host: str, port: int) -> Sequence[str]:
            return [address]

        inside = serve(direct=(DirectRoute("ok.example"),), resolve=resolve)
        answer = inside.ask(3128, b"CONNECT ok.example:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert inside.denied == ["ok.example:443 (resolves to a non-public address)"]

    def test_a_name_is_resolved_once_so_that_rebinding_it_changes_nothing(self, serve: Serve, outside: int) -> None:
        asked: list[str] = []

        async def resolve(host: str, port: int) -> Sequence[str]:
            asked.append(host)
            return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

        inside = serve(direct=(DirectRoute("ok.example", outside, networks=LOOPBACK),), resolve=resolve)
        request = f"CONNECT ok.example:{outside} HTTP/1.1\r\n\r\n".encode()
        with inside.connect(3128) as conn:
            conn.sendall(request)
            assert conn.recv(100).startswith(b"HTTP/1.1 200 ")
        assert asked == ["ok.example"]
        assert inside.ask(3128, request).startswith(b"HTTP/1.1 502 ")

    def test_plain_http_to_a_listed_host_carries_one_request_a_connection(self, serve: Serve, gateway: Gateway) -> None:
        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["127.0.0.1"]

        route = DirectRoute("ok.example", gateway.port, tls=False, networks=LOOPBACK)
        inside = serve(direct=(route,), resolve=resolve)
        first = f"GET http://ok.example:{gateway.port}/a?b=1 HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: x\r\n\r\n"
        second = "GET /second HTTP/1.1\r\nHost: evil.example\r\n\r\n"
        assert inside.ask(3128, (first + second).encode()).startswith(b"HTTP/1.1 201 ")
        (seen,) = gateway.requests
        assert seen.path == "/a?b=1"
        assert seen.headers == {"host": f"ok.example:{gateway.port}", "connection": "close"}


class TestOverload:
    """Clients that hold connections and give nothing."""

    LIMITS = ProxyLimits(connections=20, head_s=1)

    @pytest.mark.parametrize(
        ("port", "start"),
        [(3128, b"CONNECT api."), (443, hello(API_HOST)[:40]), (443, hello(API_HOST)), (80, b"GET / HT"), (443, b"")],
        ids=["head", "partial-hello", "handshake", "plain-head", "silence"],
    )
    def test_a_client_that_does_not_finish_its_opening_is_cut_off(self, serve: Serve, port: int, start: bytes) -> None:
        inside = serve(limits=self.LIMITS)
        begun = time.monotonic()
        inside.ask(port, start)
        assert 0.5 < time.monotonic() - begun < 15

    def test_a_request_head_dripped_inside_tls_is_cut_off(self, serve: Serve) -> None:
        inside = serve(limits=self.LIMITS)
        client = ssl.create_default_context(cafile=str(inside.trust))
        with inside.connect(443) as conn, client.wrap_socket(conn, server_hostname=API_HOST) as tls:
            begun = time.monotonic()
            with contextlib.suppress(OSError):  # reset or broken pipe
                while time.monotonic() - begun < 15:
                    tls.sendall(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - begun < 15

    def test_a_thousand_idle_connections_hold_no_more_than_the_cap_and_pass(self, serve: Serve) -> None:
        inside = serve(limits=self.LIMITS)
        files_before = len(list(Path("/proc/self/fd").iterdir()))
        code = (
            "import socket,sys,time\n"
            "held=[]\n"
            "for _ in range(1000):\n"
            "  s=socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1',3128)); held.append(s)\n"
            "time.sleep(0.5); print(len(held), flush=True)\n"
        )
        threads = threading.active_count()
        done: list[str] = []
        flood = threading.Thread(target=lambda: done.append(inside.python(code)))
        flood.start()
        most = 0
        while flood.is_alive():
            most = max(most, len(list(Path("/proc/self/fd").iterdir())) - files_before)
            time.sleep(0.02)
        flood.join()
        assert done == ["1000\n"]
        assert most <= 20 + 10  # the cap and what the program's pipes take
        assert threading.active_count() <= threads + 1
        assert inside.curl(f"https://{API_HOST}/api/v3/x").endswith("null [201]")
