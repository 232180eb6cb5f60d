"""Unmodified clients inside a network namespace that has nothing but our proxy."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.sandbox.conftest import Gateway, Inside, Serve

API_HOST = "api.app.example.com"

URL = f"https://{API_HOST}/api/v3/external/results/185714"

CLIENTS = {
    "requests": "import requests,sys; r=requests.post(sys.argv[1], data=b'{}', headers={'Authorization':'Bearer t'});"
    "print(r.status_code, r.text)",
    "requests-without-environment": "import requests,sys; s=requests.Session(); s.trust_env=False;"
    "r=s.post(sys.argv[1], data=b'{}', headers={'Authorization':'Bearer t'}, verify=sys.argv[2]);"
    "print(r.status_code, r.text)",
    "httpx": "import httpx,sys; r=httpx.post(sys.argv[1], content=b'{}', headers={'Authorization':'Bearer t'});"
    "print(r.status_code, r.text)",
    "urllib": "import urllib.request as u,sys; q=u.Request(sys.argv[1], b'{}', {'Authorization':'Bearer t'});"
    "r=u.urlopen(q);"
    "print(r.status, r.read().decode())",
    "aiohttp": "import aiohttp,asyncio,ssl,sys\n"
    "async def main():\n"
    "  async with aiohttp.ClientSession(headers={'Authorization':'Bearer t'}) as s:\n"
    "    async with s.post(sys.argv[1], data=b'{}', ssl=ssl.create_default_context()) as r:\n"
    "      print(r.status, await r.text())\n"
    "asyncio.run(main())",
    "strict-openssl": "import ssl,urllib.request as u,sys; c=ssl.create_default_context();"
    "c.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN;"
    "r=u.urlopen(u.Request(sys.argv[1], b'{}', {'Authorization':'Bearer t'}), context=c);"
    "print(r.status, r.read().decode())",
}


@pytest.mark.parametrize("proxy", [True, False], ids=["proxy-variables", "no-proxy-variables"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_posts_its_results_over_verified_tls(
    inside: Inside, gateway: Gateway, client: str, proxy: bool
) -> None:
    if client == "aiohttp":
        pytest.importorskip("aiohttp")
    assert inside.python(CLIENTS[client], URL, str(inside.trust), proxy=proxy) == "201 null\n"
    (seen,) = gateway.requests
    assert (seen.method, seen.path, seen.body) == ("POST", "/api/v3/external/results/185714", b"{}")
    assert seen.headers["host"] == API_HOST
    assert seen.headers["authorization"] == "Bearer t"
    assert seen.headers["x-forwarded-proto"] == "https"


@pytest.mark.parametrize("proxy", [True, False], ids=["proxy-variables", "no-proxy-variables"])
def test_curl_reaches_the_gateway_and_without_the_ca_refuses_to(inside: Inside, proxy: bool) -> None:
    assert inside.curl(URL, proxy=proxy) == "null [201]"
    assert "certificate" in inside.curl(URL, proxy=proxy, trust=False)


def test_a_large_chunked_body_arrives_whole(inside: Inside, gateway: Gateway) -> None:
    code = (
        "import requests,sys; r=requests.post(sys.argv[1], data=(b'x'*65536 for _ in range(320)));"
        "print(r.status_code, r.text)"
    )
    assert inside.python(code, URL) == "201 null\n"
    assert gateway.requests[0].body == b"x" * (20 << 20)


def test_a_container_cannot_pretend_to_be_a_proxy_or_another_host(inside: Inside, gateway: Gateway) -> None:
    spoof = ["-H", "X-Forwarded-For: 10.0.0.1", "-H", "X-Forwarded-Host: evil", "-H", "Forwarded: for=1.1.1.1"]
    assert inside.curl(*spoof, URL) == "null [201]"
    assert not {"x-forwarded-for", "x-forwarded-host", "forwarded"} & set(gateway.requests[0].headers)
    assert "[403]" in inside.curl("-H", "Host: evil.example", URL)
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/", "/api/v3", "/api/v3/../../v1/jobs", "/api/v3/%2e%2e/v1", "/api/v3//x", "/api/v3/a%2fb"]
)
def test_only_the_results_paths_of_the_gateway_are_forwarded(inside: Inside, gateway: Gateway, path: str) -> None:
    answer = inside.curl("--path-as-is", f"https://{API_HOST}{path}")
    assert "a container may call only /api/v3/" in answer
    assert "[403]" in answer
    assert gateway.requests == []


def test_plain_http_to_a_local_host_works_through_the_proxy_and_without(inside: Inside, gateway: Gateway) -> None:
    url = f"http://{API_HOST}/api/v3/x?a=1"
    assert inside.curl(url) == "null [201]"
    assert inside.curl(url, proxy=False) == "null [201]"
    assert [(r.path, r.headers["x-forwarded-proto"]) for r in gateway.requests] == [("/api/v3/x?a=1", "http")] * 2


def test_results_wait_for_a_gateway_that_is_restarting(serve: Serve, gateway: Gateway) -> None:

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    inside = serve(gateway_url=f"http://127.0.0.1:{port}")
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def answer() -> None:
        server.bind(("127.0.0.1", port))
        server.listen()
        conn, _ = server.accept()
        with conn:
            conn.recv(65536)
            conn.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\nnull")

    timer = threading.Timer(1.0, answer)
    timer.start()
    try:
        assert inside.curl("-d", "{}", URL) == "null [201]"
    finally:
        timer.join()
        server.close()


def test_a_gateway_that_stays_away_is_a_502_that_says_so(serve: Serve) -> None:
    inside = serve(gateway_url="http://127.0.0.1:1", patience_s=0)
    answer = inside.curl(URL)
    assert "the results gateway cannot be reached now; send the request again" in answer
    assert "[502]" in answer


class TestFiles:
    """The slide and the debug file."""

    def slide(self, inside: Inside, data: bytes) -> str:
        path = inside.folder / "cached slide"
        path.write_bytes(data)
        inside.files.publish("slide", path, "image.svs")
        return inside.files.url("slide", "GET", time.time() + 60)

    @pytest.mark.parametrize("proxy", [True, False], ids=["proxy-variables", "no-proxy-variables"])
    def test_the_slide_is_fetched_whole_and_by_range(self, inside: Inside, proxy: bool) -> None:
        data = os.urandom(3 << 20)
        url = self.slide(inside, data)
        target = inside.folder / "fetched"
        inside.curl("-o", str(target), url, proxy=proxy)
        assert target.read_bytes() == data
        inside.curl("-o", str(target), "-r", "1048570-2097159", url, proxy=proxy)
        assert target.read_bytes() == data[1048570:2097160]

    def test_stopping_in_the_middle_of_a_download_ends_it_quietly(
        self, inside: Inside, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = self.slide(inside, bytes(64 << 20))
        context = ssl.create_default_context(cafile=str(inside.trust))
        with inside.connect(443) as conn, context.wrap_socket(conn, server_hostname="files.mhs.internal") as tls:
            tls.sendall(f"GET {url} HTTP/1.1\r\nHost: files.mhs.internal\r\n\r\n".encode())
            assert tls.recv(15) == b"HTTP/1.1 200 OK"
            threads = threading.active_count()
            inside.proxy.stop()
            with contextlib.suppress(OSError):
                while tls.recv(1 << 16):
                    pass
        assert threading.active_count() < threads
        assert caplog.records == []

    def test_an_expired_url_is_an_s3_like_403(self, inside: Inside) -> None:
        self.slide(inside, b"slide")
        answer = inside.curl(inside.files.url("slide", "GET", time.time() - 1))
        assert "<Code>AccessDenied</Code><Message>Request has expired</Message>" in answer
        assert "[403]" in answer

    def test_a_debug_zip_is_put_and_ends_on_the_node(self, inside: Inside, tmp_path: Path) -> None:
        debug = tmp_path / "debug.zip"
        debug.write_bytes(os.urandom(700_000))
        url = inside.files.url("debug", "PUT", time.time() + 60)
        assert inside.curl("-T", str(debug), url) == " [200]"
        uploaded = inside.files.uploaded("debug")
        assert uploaded is not None
        assert uploaded.read_bytes() == debug.read_bytes()

    def test_an_upload_above_the_cap_is_refused_whether_it_tells_its_size_or_not(self, inside: Inside) -> None:
        url = inside.files.url("debug", "PUT", time.time() + 60)
        code = (
            "import requests,sys\n"
            "for body in (b'x'*(1<<21), (b'x'*65536 for _ in range(40))):\n"
            "  try: print(requests.put(sys.argv[1], data=body).status_code)\n"
            "  except requests.ConnectionError: print(413)\n"  # closed while it was still sending
        )
        assert inside.python(code, url) == "413\n413\n"
        assert inside.files.uploaded("debug") is None
        assert list((inside.folder / "uploads").iterdir()) == []
