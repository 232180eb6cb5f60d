"""A real docker-registry with our realm before it, and real clients that push to it."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from mhs_ray.domain.errors import MhsError, UnauthenticatedError
from mhs_ray.ports import PushAccess
from mhs_ray.registry.distribution import DistributionRegistry
from mhs_ray.registry.keys import RegistryKeys
from mhs_ray.registry.server import RegistryServer
from mhs_ray.registry.tokens import RegistryTokens, error_body
from tests.engines_fixtures import private_dockerd, private_podman
from tests.registry_images import tar


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Realm(BaseHTTPRequestHandler):
    """The two routes that the platform's API has for the registry."""

    tokens: RegistryTokens
    events: list[dict[str, Any]]
    arrived: threading.Condition
    secret: str

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        user = password = None
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            user, _, password = base64.b64decode(value).decode().partition(":")
        self._token(user, password, query)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/registry/events":
            if self.headers.get("Authorization") != f"Bearer {self.secret}":
                self._answer(401, {})
                return
            with self.arrived:
                self.events.extend(json.loads(body)["events"])
                self.arrived.notify_all()
            self._answer(200, {})
            return
        form = parse_qs(body.decode())
        self._token(form.get("username", [None])[0], form.get("password", [None])[0], form)

    def _token(self, user: str | None, password: str | None, query: dict[str, list[str]]) -> None:
        service = query.get("service", [None])[0]
        try:
            self._answer(200, self.tokens.token_response(user, password, service, query.get("scope", [])))
        except MhsError as error:
            self._answer(401 if isinstance(error, UnauthenticatedError) else 403, error_body(error))

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Platform:
    """The registry, its realm and our side of it."""

    server: RegistryServer
    tokens: RegistryTokens
    registry: DistributionRegistry
    events: list[dict[str, Any]] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def access(self, image_id: int) -> PushAccess:
        return self.registry.push_access(image_id, 1, datetime.now(UTC) + timedelta(hours=12))


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("registry")
    keys = RegistryKeys.load_or_create(root / "keys")
    tokens = RegistryTokens(keys, "mhs", "mhs-registry")
    secret = "notify-secret"
    handler = type("Realm", (_Realm,), {"tokens": tokens, "secret": secret})
    realm = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    realm.daemon_threads = True
    base = f"http://127.0.0.1:{realm.server_port}/registry"
    server = RegistryServer(
        root / "state", free_port(), f"{base}/token", "mhs", "mhs-registry", root / "keys/token.crt",
        f"{base}/events", secret,
    )  # fmt: skip
    registry = DistributionRegistry(server.address, tokens)
    made = Platform(server, tokens, registry)
    handler.events, handler.arrived = made.events, made.arrived  # type: ignore[attr-defined]
    thread = threading.Thread(target=realm.serve_forever, daemon=True)
    thread.start()
    server.start()
    yield made
    server.stop()
    registry.close()
    realm.shutdown()
    realm.server_close()
    thread.join()


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small file systems as tar archives, ``one`` and ``two``."""
    folder = tmp_path_factory.mktemp("rootfs")
    made = {}
    for name in ("one", "two"):
        made[name] = folder / f"{name}.tar"
        made[name].write_bytes(tar([("app/model", name.encode() * 500), ("opt/certifi/cacert.pem", b"PEM")]))
        assert tarfile.is_tarfile(made[name])
    return made


@dataclass
class Client:
    """A command line client with its own storage and logins."""

    name: str
    words: tuple[str, ...]
    env: dict[str, str]
    work: Path

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run and return, whatever came of it."""
        return subprocess.run(
            [*self.words, *words], env=self.env, input=stdin, capture_output=True, text=True, check=False, timeout=120,
            cwd=self.work,
        )  # fmt: skip

    def ok(self, *words: str, stdin: str | None = None) -> str:
        """Run and return stdout; it must have worked."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"{self.name} {words[0]}: {done.stdout[-500:]} {done.stderr[-1500:]}"
        return done.stdout

    def build(self, archive: Path, tag: str) -> None:
        """Build an image FROM scratch; nothing in it needs to run."""
        context = self.work / "context"
        context.mkdir(exist_ok=True)
        (context / "rootfs.tar").write_bytes(archive.read_bytes())
        lines = ("FROM scratch", "ADD rootfs.tar /", "WORKDIR /app", 'ENTRYPOINT ["/app/model"]')
        (context / "Dockerfile").write_text("\n".join(lines))
        self.ok("build", "-t", tag, str(context))


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    work = tmp_path_factory.mktemp("docker")
    with private_dockerd() as url:
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            "HOME": str(work),
            "DOCKER_HOST": url,
            "DOCKER_BUILDKIT": "0",
        }
        yield Client("docker", ("docker",), env, work)


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    work = tmp_path_factory.mktemp("podman")
    (work / "auth.json").write_text("{}")  # podman manifest fails without the file
    env = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": str(work), "REGISTRY_AUTH_FILE": str(work / "auth.json")}
    with private_podman() as words:
        yield Client("podman", ("podman", *words), env, work)


@pytest.fixture(scope="session")
def skopeo(tmp_path_factory: pytest.TempPathFactory) -> Client:
    work = tmp_path_factory.mktemp("skopeo")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(work), "REGISTRY_AUTH_FILE": str(work / "auth.json")}
    return Client("skopeo", ("skopeo",), env, work)
