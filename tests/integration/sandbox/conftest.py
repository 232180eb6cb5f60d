"""A real network namespace with the real proxy in it, and clients that run inside."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from mhs_ray.sandbox._netns_helper import CLONE_NEWNET, setns
from mhs_ray.sandbox.dial import Resolve
from mhs_ray.sandbox.files import FileServer
from mhs_ray.sandbox.http import HttpServer
from mhs_ray.sandbox.local import LocalHosts
from mhs_ray.sandbox.netns import listeners
from mhs_ray.sandbox.proxy import Proxy, ProxyLimits
from mhs_ray.sandbox.routes import FILES_HOST, DirectRoute, LocalRoute, RouteTable, results_route
from mhs_ray.sandbox.tls import AttemptCa, trust_bundle

T = TypeVar("T")


@pytest.fixture
def netns() -> Iterator[int]:
    """The pid of a process that holds an otherwise empty network namespace."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("needs root and util-linux for a network namespace")
    with Holder(["unshare", "--net", "cat"]) as pid:
        yield pid


class Holder:
    """A process that sleeps in new namespaces until it is left; entering waits until it has them."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"ready\n")  # cat echoes it: unshare is past its work
        self.process.stdin.flush()
        self.process.stdout.readline()
        return self.process.pid

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def inside_netns(pid: int, do: Callable[[], T]) -> T:
    """Return what `do` returns when it runs in the network namespace of `pid`."""

    def enter() -> T:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)
        return do()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


@dataclass
class Seen:
    """One request as the gateway got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Gateway:
    """A stand-in for the platform's API that keeps what it got."""

    url: str
    port: int
    requests: list[Seen] = field(default_factory=list)


class _GatewayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: Gateway

    def _serve(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.gateway.requests.append(Seen(self.command, self.path, headers, body))
        answer = b"null"
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _serve  # noqa: N815  (names that http.server looks for)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A plain HTTP server on the node's loopback."""

    class Handler(_GatewayHandler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    Handler.gateway = Gateway(f"http://127.0.0.1:{port}", port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield Handler.gateway
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Inside:
    """A served network namespace: runs programs in it as a container's would run."""

    pid: int
    folder: Path
    files: FileServer
    proxy: Proxy
    denied: list[str]

    @property
    def trust(self) -> Path:
        return self.folder / "trust.pem"

    def run(self, command: list[str], *, proxy: bool = True, trust: bool = True, timeout: float = 30) -> str:
        """Return stdout and stderr of `command`, run in the namespace with the sandbox's hosts file."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        if proxy:
            address = "http://127.0.0.1:3128"
            env |= {"HTTP_PROXY": address, "HTTPS_PROXY": address, "NO_PROXY": ""}
            env |= {k.lower(): v for k, v in env.items() if k.endswith("_PROXY")}
        if trust:
            names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
            env |= dict.fromkeys(names, str(self.trust))
        hosts = self.folder / "hosts"
        # A mount namespace of its own, so that the node's hosts file is covered for this program only.
        shell = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "unshare", "--mount", "sh", "-c", shell, "sh"]
        done = subprocess.run([*enter, *command], env=env, capture_output=True, text=True, timeout=timeout, check=False)
        return done.stdout + done.stderr

    def connect(self, port: int) -> socket.socket:
        """Return a connection to this port of the namespace's loopback. Raises OSError."""
        return inside_netns(self.pid, lambda: socket.create_connection(("127.0.0.1", port), 10))

    def ask(self, port: int, data: bytes) -> bytes:
        """Send `data` to a port, return all that is answered until the proxy closes."""
        with self.connect(port) as conn:
            conn.settimeout(20)
            conn.sendall(data)
            answer = b""
            with suppress(ConnectionResetError):
                while piece := conn.recv(65536):
                    answer += piece
            return answer

    def python(self, code: str, *arguments: str, proxy: bool = True, trust: bool = True) -> str:
        """Run Python code in the namespace."""
        return self.run([sys.executable, "-c", code, *arguments], proxy=proxy, trust=trust)

    def curl(self, *arguments: str, proxy: bool = True, trust: bool = True) -> str:
        """Run curl in the namespace; what it prints ends with the status."""
        return self.run(["curl", "-sS", "-m", "20", "-w", " [%{http_code}]", *arguments], proxy=proxy, trust=trust)


Serve = Callable[..., Inside]


@pytest.fixture
def serve(netns: int, gateway: Gateway, tmp_path: Path) -> Iterator[Serve]:
    """Returns a function that serves the namespace; keyword arguments: direct, limits, resolve, patience_s."""
    proxies: list[Proxy] = []

    def start(
        direct: tuple[DirectRoute, ...] = (),
        limits: ProxyLimits | None = None,
        resolve: Resolve | None = None,
        gateway_url: str = gateway.url,
        patience_s: float = 60,
    ) -> Inside:
        table = RouteTable([results_route("app.example.com", gateway_url), LocalRoute(FILES_HOST, None), *direct])
        private, uploads = tmp_path / "private", tmp_path / "uploads"
        private.mkdir()
        uploads.mkdir()
        ca = AttemptCa.open(private, table.local_hosts)
        (tmp_path / "trust.pem").write_bytes(trust_bundle(ca))
        (tmp_path / "hosts").write_text("127.0.0.1 localhost " + " ".join(table.hosts) + "\n")
        files = FileServer(b"k" * 32, uploads, 1 << 20)
        files.accept("debug")
        denied: list[str] = []
        limits = limits or ProxyLimits()
        server = HttpServer(LocalHosts(table, files, patience_s), limits.head_s)
        proxy = Proxy(table, server, ca.server_context(table.local_hosts), denied.append, limits, resolve)
        proxy.start(listeners(Path(f"/proc/{netns}/ns/net"), (3128, 80, *table.tls_ports)))
        proxies.append(proxy)
        return Inside(netns, tmp_path, files, proxy, denied)

    yield start
    for proxy in proxies:
        proxy.stop()


@pytest.fixture
def inside(serve: Serve) -> Inside:
    """The namespace served with defaults: the results gateway and the files."""
    return serve()
